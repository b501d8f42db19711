//! The network against torchvision's (`make_weights.py --golden tests/golden`), and the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_batchnorm::Memory;
use resnet::model::{ResNet, ResNetConfig};
use resnet::{classify, train, weights};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// As absolute as values of about 1 are, relative above.
const TOLERANCE: f64 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn devices() -> Vec<(&'static str, Device)> {
    let names = ["flex", "ndarray", "wgpu"];
    let devices = names.into_iter().filter_map(|name| {
        let found = mnist::device::resolve(name);
        let required = std::env::var("BATCHNORM_REQUIRE_GPU").is_ok_and(|value| value == "1");
        assert!(found.is_ok() || !(required || name != "wgpu"), "{found:?}");
        Some((name, found.ok()?.device()))
    });
    devices.collect()
}

fn values(tensor: &TensorView<'_>) -> Vec<f64> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::U8 => data.iter().map(|value| f64::from(*value)).collect(),
        Dtype::I32 => {
            let chunks = data.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            chunks.map(|b| f64::from(i32::from_le_bytes(b))).collect()
        }
        Dtype::F32 => {
            let chunks = data.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            chunks.map(|b| f64::from(f32::from_le_bytes(b))).collect()
        }
        other => panic!("{other:?} in a golden"),
    }
}

fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs() / expected.abs().max(1.0);
        // Not `error > tolerance`: NaN is an error.
        let close = error <= tolerance;
        assert!(close, "{what}: got {got} at {at}, expected {expected}");
    }
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The golden's images, `[40, 3, 48, 48]`, and labels.
fn batches(golden: &SafeTensors<'_>, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let view = golden.tensor("pixels").expect("pixels");
    let pixels: Vec<f32> = values(&view)
        .iter()
        .map(|p| *p as f32 / 127.5 - 1.0)
        .collect();
    let pixels = TensorData::new(pixels, [40, 3, 48, 48]);
    let labels = values(&golden.tensor("labels").expect("labels"));
    let labels: Vec<i32> = labels.iter().map(|label| *label as i32).collect();
    let labels = TensorData::new(labels, [40]);
    (
        Tensor::from_data(pixels, device),
        Tensor::from_data(labels, device),
    )
}

fn narrow(device: &Device) -> ResNet {
    weights::load(&golden("resnet18-narrow.safetensors"), device)
        .expect("weights")
        .0
}

#[test]
fn logits_are_torchvisions_folded_or_not() {
    let bytes = std::fs::read(golden("expected.safetensors")).expect("a golden");
    let expected = SafeTensors::deserialize(&bytes).expect("a golden");
    let logits = values(&expected.tensor("logits").expect("logits"));
    for (name, device) in devices() {
        let images = batches(&expected, &device).0.narrow(0, 0, 8);
        let model = narrow(&device);
        let unfolded = numbers(model.forward(images.clone()));
        assert_close(name, &unfolded, &logits, TOLERANCE);
        let folded = model.fold().expect("folds");
        assert_eq!(format!("{folded}").matches("BatchNorm").count(), 0);
        assert_close(name, &numbers(folded.forward(images)), &unfolded, TOLERANCE);
    }
}

/// Reading and reducing a picture included: torchvision rounds each pixel to a byte in between, at most
/// half a byte from ours, which the network spreads.
#[test]
fn a_picture_is_prepared_as_torchvision_does() {
    let bytes = std::fs::read(golden("expected.safetensors")).expect("a golden");
    let expected = SafeTensors::deserialize(&bytes).expect("a golden");
    let logits = values(&expected.tensor("photo").expect("photo"));
    let device = Device::flex();
    let (model, config) =
        weights::load(&golden("resnet18-narrow.safetensors"), &device).expect("weights");
    let picture =
        classify::prepared(&golden("photo.png"), false, &config, &device).expect("a picture");
    assert_close("photo", &numbers(model.forward(picture)), &logits, 1e-2);
}

#[test]
fn five_steps_of_training_are_torchvisions() {
    let bytes = std::fs::read(golden("expected.safetensors")).expect("a golden");
    let expected = SafeTensors::deserialize(&bytes).expect("a golden");
    let trained = std::fs::read(golden("resnet18-narrow-trained.safetensors")).expect("a golden");
    let trained = SafeTensors::deserialize(&trained).expect("a golden");
    let losses = values(&expected.tensor("losses").expect("losses"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trained.safetensors");
    for (name, device) in devices() {
        let device = device.autodiff();
        let (images, labels) = batches(&expected, &device);
        let mut model = narrow(&device);
        let mut optimizer = train::optimizer();
        for (step, loss) in losses.iter().enumerate() {
            let images = images.clone().narrow(0, 8 * step, 8);
            let labels = labels.clone().narrow(0, 8 * step, 8);
            let (next, _, got) = train::step(model, &mut optimizer, images, labels, 0.01);
            model = next;
            let what = format!("{name}, loss of step {step}");
            assert_close(&what, &numbers(got), &[*loss], TOLERANCE);
        }
        weights::save(&model.valid(), &file).expect("saved");
        let saved = std::fs::read(&file).expect("saved");
        let saved = SafeTensors::deserialize(&saved).expect("saved");
        let mut compared = 0;
        for (key, tensor) in trained.tensors() {
            if key.ends_with("num_batches_tracked") {
                continue;
            }
            let got = saved.tensor(&key).expect(&key);
            assert_eq!(got.shape(), tensor.shape(), "{key}");
            let what = format!("{name}, {key}");
            assert_close(&what, &values(&got), &values(&tensor), TOLERANCE);
            compared += 1;
        }
        // 20 convolutions, 20 batch norms of four tensors, a dense layer of two.
        assert_eq!((compared, saved.len()), (102, 102), "{name}");
    }
}

/// In-place batch norm after 3 steps: the same losses and weights, with a tensor less for most layers.
#[test]
fn keeping_outputs_changes_no_training_step() {
    let bytes = std::fs::read(golden("expected.safetensors")).expect("a golden");
    let expected = SafeTensors::deserialize(&bytes).expect("a golden");
    let device = Device::flex().autodiff();
    let (images, labels) = batches(&expected, &device);
    let trained = |memory| {
        let config = ResNetConfig {
            width: 8,
            classes: 10,
            slope: 0.01,
            memory,
            ..ResNetConfig::default()
        };
        device.seed(3);
        let mut model = config.init(&device);
        let mut optimizer = train::optimizer();
        let mut losses = Vec::new();
        for step in 0..3 {
            let images = images.clone().narrow(0, 8 * step, 8);
            let labels = labels.clone().narrow(0, 8 * step, 8);
            let (next, _, loss) = train::step(model, &mut optimizer, images, labels, 0.01);
            model = next;
            losses.extend(numbers(loss));
        }
        let logits = numbers(model.valid().forward(images.clone().inner()));
        [losses, logits].concat()
    };
    let (input, output) = (trained(Memory::Input), trained(Memory::Output));
    assert_ne!(
        input, output,
        "the second way computes otherwise, in the last digits"
    );
    assert_close("in place", &output, &input, TOLERANCE);
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resnet"));
    command
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// Fails with status 1 and these words, without a panic.
fn refuse(arguments: &[&str], words: &str) {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(words), "`{words}` is not in: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn a_picture_is_classified_alike_before_and_after_folding() {
    let folder = tempfile::tempdir().expect("a folder");
    let folded = folder.path().join("folded.safetensors");
    let folded = folded.to_str().expect("UTF-8");
    let (input, photo) = (golden("resnet18-narrow.safetensors"), golden("photo.png"));
    let (input, photo) = (
        input.to_str().expect("UTF-8"),
        photo.to_str().expect("UTF-8"),
    );
    let classified =
        |weights: &str| succeed(&["classify", photo, "--weights", weights, "--device", "flex"]);
    let before = classified(input);
    assert!(
        before.lines().next().expect("a line").ends_with("class 4"),
        "{before}"
    );
    assert_eq!(before.lines().count(), 5);
    succeed(&["fold", input, folded, "--device", "flex"]);
    assert_eq!(classified(folded), before);
    let words = "has no batch norm: it is folded already";
    refuse(&["fold", folded, folded, "--device", "flex"], words);
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| {
        folder
            .path()
            .join(name)
            .to_str()
            .expect("UTF-8")
            .to_string()
    };
    let photo = golden("photo.png");
    let photo = photo.to_str().expect("UTF-8");
    let weights = golden("resnet18-narrow.safetensors");
    let weights = weights.to_str().expect("UTF-8");
    let classify = |photo: &str, weights: &str, words: &str| {
        refuse(
            &["classify", photo, "--weights", weights, "--device", "flex"],
            words,
        );
    };
    classify(photo, &path("none.safetensors"), "is not a file");
    classify(&path("none.png"), weights, "cannot read");
    let other = golden("expected.safetensors");
    classify(
        photo,
        other.to_str().expect("UTF-8"),
        "it is no ResNet: it has no `conv1.weight`",
    );
    std::fs::write(path("short.txt"), "one\ntwo\n").expect("written");
    let short = path("short.txt");
    refuse(
        &[
            "classify",
            photo,
            "--weights",
            weights,
            "--device",
            "flex",
            "--classes",
            &short,
        ],
        "for the 10 classes of the network, got 2",
    );

    // Every tensor that is wrong, by its key.
    let bytes = std::fs::read(weights).expect("weights");
    let whole = SafeTensors::deserialize(&bytes).expect("weights");
    let negative: Vec<u8> = std::iter::repeat_n((-1f32).to_le_bytes(), 4)
        .flatten()
        .collect();
    let mut tensors: Vec<(String, TensorView<'_>)> = whole.tensors();
    tensors.retain(|(key, _)| key != "layer2.1.conv2.weight");
    for (key, tensor) in &mut tensors {
        if key == "bn1.running_var" {
            *tensor = TensorView::new(Dtype::F32, vec![4], &negative).expect("a tensor");
        }
    }
    let damaged = safetensors::serialize(tensors, None).expect("a file");
    std::fs::write(path("damaged.safetensors"), damaged).expect("written");
    let damaged = path("damaged.safetensors");
    classify(
        photo,
        &damaged,
        "bn1.running_var: expected values from 0, got -1",
    );
    classify(
        photo,
        &damaged,
        "layer2.1.conv2.weight: missing in the file",
    );
    refuse(
        &[
            "fold",
            &damaged,
            &path("out.safetensors"),
            "--device",
            "flex",
        ],
        "bn1.running_var",
    );
    assert!(!Path::new(&path("out.safetensors")).exists());
    refuse(
        &["train", "--batch-size", "1"],
        "expected a batch size of 2 to",
    );
    refuse(&["bench", "--device", "abacus"], "unknown device `abacus`");
    // A table of somebody else's.
    std::fs::write(path("metrics.csv"), "precious").expect("written");
    refuse(
        &["train", "--device", "flex", "--out", &path("")],
        "found metrics.csv without resnet18.safetensors",
    );
    let kept = std::fs::read(path("metrics.csv")).expect("a file");
    assert_eq!(kept, b"precious");
}

#[test]
fn a_short_training_learns_and_its_network_classifies() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("UTF-8");
    let printed = succeed(&[
        "train", "--epochs", "1", "--width", "4", "--device", "flex", "--out", out,
    ]);
    let accuracy = printed
        .split("accuracy ")
        .nth(1)
        .and_then(|rest| rest.split('%').next());
    let accuracy: f64 = accuracy.expect("an accuracy").parse().expect("a number");
    assert!(accuracy > 60.0, "{printed}");
    for name in ["resnet18.safetensors", "metrics.csv", "learning-curves.png"] {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
    let weights = folder.path().join("resnet18.safetensors");
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mnist/assets/ankle-boot.png");
    let (weights, boot) = (
        weights.to_str().expect("UTF-8"),
        boot.to_str().expect("UTF-8"),
    );
    let printed = succeed(&[
        "classify",
        "--invert",
        boot,
        "--weights",
        weights,
        "--device",
        "flex",
        "--top",
        "10",
    ]);
    assert_eq!(printed.lines().count(), 10);
    assert!(printed.contains("Ankle boot"), "{printed}");
}

#[test]
fn the_bench_prints_every_pass() {
    let arguments = "bench --batches 2 --size 32 --width 4 --rounds 1 --device flex --json";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let rows: serde_json::Value = serde_json::from_str(&succeed(&arguments)).expect("JSON");
    let rows = rows.as_array().expect("rows");
    let expected = ["inference", "training step"]
        .map(|pass| ["ours", "without", "burn-nn"].map(|network| (pass, network)));
    assert_eq!(rows.len(), 6);
    for (row, (pass, network)) in rows.iter().zip(expected.concat()) {
        assert_eq!(
            (&row["pass"], &row["network"]),
            (&pass.into(), &network.into())
        );
        assert!(row["milliseconds"].as_f64() > Some(0.0), "{row}");
    }
}
