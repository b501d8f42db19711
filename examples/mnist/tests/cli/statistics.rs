//! `compare --batch-sizes`, `recalibrate` and `health`: what becomes of the running statistics.

use burn::module::Param;
use burn::tensor::{Device, Tensor, activation::relu};
use mnist::cli::ModelArgs;
use mnist::eval::SavedRun;
use mnist::training::TrainingData;

use crate::*;

/// A finished run of one epoch in the folder `run`, which the test may change.
fn small_run(base: &Base) -> Value {
    report(base, "--epochs 1 --input 100 --device flex --out run")
}

/// What the library reads from the folder.
fn open(folder: PathBuf) -> SavedRun {
    let args = ModelArgs {
        model: folder,
        device: None,
    };
    SavedRun::open(&args).expect("a finished run")
}

fn values(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[test]
fn small_batches_are_compared_with_their_remedies() {
    let base = folder();
    let flags =
        "compare --device flex --batch-sizes 16,2 --seeds 2 --epochs 1 --input 100 --out cmp";
    let result = report(&base, flags);
    assert_eq!(
        names(base.at("cmp")),
        ".lock batch-sizes.json batch-sizes.png batch-sizes.txt"
    );
    assert_eq!(read_json(base.at("cmp/batch-sizes.json")), result);
    let groups = result["groups"].as_array().expect("groups");
    let group = |size: usize, norm: &str| {
        let of = |group: &&Value| group["batch_size"] == size && group["norm"] == norm;
        groups.iter().find(of)
    };
    let methods = ["none", "batch", "recalibrated", "blend", "renorm", "ghost"];
    let found = |size| methods.map(|norm| group(size, norm).is_some());
    assert_eq!(found(16), [true; 6]);
    // Two images have no part of eight.
    assert_eq!(found(2), [true, true, true, true, true, false]);
    assert_eq!(
        (groups.len(), result["runs"].as_array().map(Vec::len)),
        (11, Some(22))
    );
    let accuracy = |size, norm| number(group(size, norm).expect("a group"), "test_accuracy");
    let rate = |size| number(group(size, "none").expect("a group"), "learning_rate");
    assert!((rate(2) - 0.001 / 4.0).abs() < 1e-12 && rate(2) < rate(16));
    // The harm, and a remedy.
    let (plain, blend) = (accuracy(2, "batch"), accuracy(2, "blend"));
    assert!(plain < accuracy(16, "batch") - 0.05, "{plain}");
    assert!(blend > plain + 0.05, "{blend} with, {plain} without");

    // Each method does something of its own, and recalibration follows the training of `batch`.
    let runs = result["runs"].as_array().expect("runs");
    let of = |norm: &str, key: &str| {
        let run = |run: &&Value| run["batch_size"] == 16 && run["norm"] == norm;
        runs.iter().find(run).expect("a run")[key].clone()
    };
    for (at, norm) in methods.iter().enumerate() {
        for other in &methods[..at] {
            assert_ne!(
                of(norm, "test_loss"),
                of(other, "test_loss"),
                "{norm} {other}"
            );
        }
    }
    let key = "validation_accuracy";
    assert_eq!(of("recalibrated", key), of("batch", key));

    let table = fs::read_to_string(base.at("cmp/batch-sizes.txt")).expect("read");
    let begin = "2 seeds, 1 epoch of 6300 images on flex";
    assert!(
        table.starts_with(begin) && table.contains("sqrt(batch size / 32)"),
        "{table}"
    );
    let picture = image::open(base.at("cmp/batch-sizes.png")).expect("a PNG file");
    for color in [
        [213, 94, 0],
        [0, 114, 178],
        [86, 180, 233],
        [230, 159, 0],
        [204, 121, 167],
    ] {
        let count = picture
            .to_rgb8()
            .pixels()
            .filter(|pixel| pixel.0 == color)
            .count();
        assert!(count > 200, "{count} pixels of {color:?}");
    }
}

#[test]
fn batch_sizes_that_make_no_sense_are_refused() {
    let base = folder();
    let one = "one image has no variance";
    for (flags, status, parts) in [
        ("compare --batch-sizes 0", 2, "--batch-sizes|expected 2"),
        ("compare --batch-sizes 8,1", 2, one),
        ("--batch-size 1", 2, one),
        (
            "compare --batch-sizes 8 --batch-size 4",
            2,
            "cannot be used with",
        ),
        (
            "compare --batch-sizes 8 --lrs 0.1",
            2,
            "cannot be used with",
        ),
        (
            "compare --batch-sizes 8,2,8",
            1,
            "--batch-sizes holds 8 twice",
        ),
        (
            "compare --norms blend,blend",
            1,
            "--norms holds blend twice",
        ),
        ("compare --norms relu", 2, "--norms"),
    ] {
        fail(&mut mnist(&base, flags), status, parts);
        assert!(names(&base).is_empty(), "{flags} left {}", names(&base));
    }
    // The command line says no because the layer would.
    small_run(&base);
    let run = open(base.at("run"));
    let device = Device::flex().autodiff();
    let model = run.config.model.init(1, &device);
    let layer = model.batch_norm().expect("a layer");
    let error = layer.try_forward(Tensor::<2>::ones([1, 50], &device));
    assert!(error.is_err(), "a batch of one");
}

/// The mean and variance of every hidden unit over the images that the run was trained with, in f64.
fn statistics(run: &SavedRun) -> [Vec<f64>; 2] {
    let (config, images) = (&run.config, embedded().train);
    let train = TrainingData::new(config, &images).expect("enough").train;
    let inputs = train.batch(train.indices(), &Device::flex()).inputs;
    let hidden = relu(run.model.dense.forward(inputs));
    let hidden: Vec<f64> = hidden.into_data().iter::<f64>().collect();
    let (width, count) = (config.model.hidden, train.count() as f64);
    let unit = |at: usize| hidden.iter().skip(at).step_by(width);
    let mean: Vec<f64> = (0..width).map(|at| unit(at).sum::<f64>() / count).collect();
    let variance =
        |at: usize| unit(at).map(|x| (x - mean[at]).powi(2)).sum::<f64>() / (count - 1.0);
    [(0..width).map(variance).collect(), mean]
}

fn close(got: &[f64], expected: &[f64]) -> bool {
    let pairs = got.iter().zip(expected);
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * b.abs() + 1e-6;
    got.len() == expected.len() && { pairs }.all(near)
}

#[test]
fn recalibration_gives_the_statistics_of_the_training_images() {
    let base = folder();
    let summary = small_run(&base);
    let before = fs::read(base.at("run/model.bpk")).expect("read");
    let report_of = |flags: &str| report(&base, &format!("recalibrate --model run {flags}"));
    let result = report_of("");
    // The old run is as it was, the new one complete.
    assert_eq!(fs::read(base.at("run/model.bpk")).expect("read"), before);
    let new = base.at("run-recalibrated");
    assert_eq!(names(&new), ALL_FILES.replace("checkpoint ", ""));
    let loss = number(&summary, "test_loss");
    assert_eq!(number(&result, "test_loss_before"), loss);
    assert_ne!(number(&result, "test_loss"), loss);
    let again = report(&base, "eval --model run-recalibrated");
    assert_eq!(again["test_loss"], result["test_loss"]);
    assert_eq!(
        read_json(new.join("summary.json"))["test_loss"],
        result["test_loss"]
    );
    assert_eq!(epochs(&new), epochs(base.at("run")));

    let (old, new) = (open(base.at("run")), open(new));
    let [variance, mean] = statistics(&old);
    let layer = |run: &SavedRun| {
        let layer = run.model.batch_norm().expect("a layer");
        [layer.running_var.value(), layer.running_mean.value()].map(values)
    };
    let [[new_variance, new_mean], [old_variance, old_mean]] = [layer(&new), layer(&old)];
    assert!(close(&new_mean, &mean) && close(&new_variance, &variance));
    assert!(!close(&old_mean, &mean) && !close(&old_variance, &variance));
    let drifts = mean.iter().zip(&old_mean).zip(&old_variance);
    let drift = drifts.map(|((new, old), variance)| (new - old).abs() / (variance + 1e-5).sqrt());
    let drift = drift.fold(0.0, f64::max);
    let told = number(&result, "mean_drift");
    assert!((told - drift).abs() < 1e-3 * drift, "{told}, not {drift}");

    // Over the old network only if that is said, and then for good.
    let parts = "run-recalibrated is not empty|--out|--in-place";
    refuse(&base, "recalibrate --model run", parts);
    refuse(
        &base,
        "recalibrate --model run --out run",
        "run is not empty|--in-place",
    );
    succeed(&mut mnist(&base, "health --model run"));
    report_of("--in-place");
    assert_eq!(
        names(base.at("run")),
        ALL_FILES,
        "no picture of another network"
    );
    let twice = report_of("--in-place");
    assert_eq!(twice["test_loss_before"], result["test_loss"]);
    assert_eq!(twice["test_loss"], result["test_loss"]);
    assert!(number(&twice, "mean_drift") < 1e-3, "{twice}");
    let plain = succeed(&mut mnist(&base, "recalibrate --model run --out third"));
    assert!(
        plain.contains("test before") && plain.contains("written to third"),
        "{plain}"
    );
}

#[test]
fn health_finds_what_is_wrong() {
    let base = folder();
    small_run(&base);
    let run = open(base.at("run"));
    // Statistics of the training images are near those of the test images.
    report(&base, "recalibrate --model run --in-place");
    let result = report(&base, "health --model run");
    let layer = &result["layers"][0];
    assert_eq!(
        (&layer["channels"], &result["test_images"]),
        (&50.into(), &1500.into())
    );
    assert!(number(layer, "mean_drift") < 0.5, "{layer}");
    for key in [
        "running_mean",
        "test_var",
        "mean_drift",
        "variance_drift",
        "gamma",
    ] {
        assert_eq!(
            result["channels"][key].as_array().map(Vec::len),
            Some(50),
            "{key}"
        );
    }
    let picture = image::open(base.at("run/health.png")).expect("a PNG file");
    assert_eq!((picture.width(), picture.height()), (1920, 600));

    // A unit that nobody hears, and one whose mean is far off.
    let mut model = run.model;
    let Some(mnist::model::Norm::Batch(layer)) = &mut model.norm else {
        panic!("a layer")
    };
    let with = |tensor: Tensor<1>, at: usize, value: f32| tensor.slice_fill(at..at + 1, value);
    layer.gamma = Param::from_tensor(with(layer.gamma.val(), 7, 0.0));
    layer
        .running_mean
        .update(with(layer.running_mean.value(), 9, 1e4));
    run.folder.save_model(&model).expect("saved");
    let result = report(&base, "health --model run");
    let layer = &result["layers"][0];
    assert_eq!(
        (&layer["dead"], &result["healthy"]),
        (&serde_json::json!([7]), &false.into())
    );
    assert!(number(layer, "mean_drift") > 100.0, "{layer}");
    let plain = succeed(&mut mnist(&base, "health --model run"));
    assert!(
        plain.contains("mean drift") && plain.contains("<-"),
        "{plain}"
    );
    assert!(
        plain.contains("not healthy") && plain.contains("run/health.png"),
        "{plain}"
    );
}

#[test]
fn networks_that_cannot_be_examined_are_named() {
    let base = folder();
    for command in ["recalibrate", "health"] {
        refuse(
            &base,
            command,
            "config.json is missing|-- train --out artifacts/mnist",
        );
    }
    let both = "recalibrate --in-place --out new";
    fail(&mut mnist(&base, both), 2, "cannot be used with");
    assert!(names(&base).is_empty());
    for norm in ["none", "burn"] {
        let run = format!("--epochs 1 --input 100 --device flex --out {norm} --norm {norm}");
        report(&base, &run);
        for command in ["recalibrate", "health"] {
            let flags = format!("{command} --model {norm}");
            refuse(&base, &flags, "no layer of burn-batchnorm|--norm batch");
        }
        assert_eq!(names(base.at(norm)), ALL_FILES);
    }
    assert_eq!(names(&base), "burn none");

    // Nothing of another's goes, and a damaged run is named.
    small_run(&base);
    fs::create_dir(base.at("hf")).expect("created");
    fs::write(base.at("hf/config.json"), "{}").expect("written");
    refuse(
        &base,
        "recalibrate --model run --out hf",
        "hf is not empty|--out",
    );
    assert_eq!(names(base.at("hf")), "config.json");
    for name in ["summary.json", "metrics.csv", "model.bpk"] {
        let whole = fs::read(base.at("run").join(name)).expect("read");
        fs::write(base.at("run").join(name), "damaged").expect("written");
        refuse(&base, "recalibrate --model run --in-place", name);
        refuse(&base, "recalibrate --model run --out new", name);
        assert_eq!(
            fs::read(base.at("run").join(name)).expect("read"),
            b"damaged"
        );
        fs::write(base.at("run").join(name), whole).expect("written");
    }
    assert!(!base.at("new").exists());
}
