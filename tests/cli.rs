//! The program `mnist` end to end, as a user meets it: files, numbers, messages, exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use mnist::data::{Dataset, Images, Source};
use mnist::history::History;
use serde_json::Value;

const ALL_FILES: [&str; 8] = [
    "checkpoint",
    "config.json",
    "confusion-matrix.png",
    "learning-curves.png",
    "metrics.csv",
    "model.bpk",
    "model.safetensors",
    "summary.json",
];

fn mnist(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnist"));
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed; returns its standard output.
#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[track_caller]
fn json(command: &mut Command) -> Value {
    let output = succeed(command);
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error} in the output:\n{output}"))
}

/// Runs a command that must fail with this status and say all of `parts`, without a panic.
#[track_caller]
fn fail(command: &mut Command, status: i32, parts: &[&str]) {
    let output: Output = command.output().expect("the program starts");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{command:?}\n{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| text(entry.expect("an entry").file_name().as_encoded_bytes()))
        .collect();
    names.sort();
    names
}

#[track_caller]
fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("`{key}` is not a number in {value}"))
}

/// `metrics.csv` without the times.
fn epochs(run: &Path) -> Vec<String> {
    let csv = fs::read_to_string(run.join("metrics.csv")).expect("metrics.csv");
    let lines = csv.lines().skip(1);
    lines
        .map(|line| line.split(',').take(5).collect::<Vec<_>>().join(","))
        .collect()
}

fn embedded() -> Dataset {
    Source::Embedded.load().expect("embedded images")
}

fn write_idx(folder: &Path, split: &str, images: &Images, count: usize) {
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_be_bytes()).collect() };
    let mut file = words(&[0x803, count as u32, 28, 28]);
    file.extend(&images.pixels[..count * 784]);
    fs::write(folder.join(format!("{split}-images-idx3-ubyte")), file).expect("written");
    let mut file = words(&[0x801, count as u32]);
    file.extend(&images.labels[..count]);
    fs::write(folder.join(format!("{split}-labels-idx1-ubyte")), file).expect("written");
}

/// A data set of few images, for devices that are slow and for files that are then damaged.
fn small_data(folder: &Path) -> PathBuf {
    let data = folder.join("few-fashion");
    fs::create_dir(&data).expect("created");
    let set = embedded();
    write_idx(&data, "train", &set.train, 320);
    write_idx(&data, "t10k", &set.test, 160);
    data
}

/// A run of two epochs that several tests only read.
fn trained() -> &'static (PathBuf, Value) {
    static RUN: OnceLock<(PathBuf, Value)> = OnceLock::new();
    RUN.get_or_init(|| {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mnist-cli");
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(&base).expect("created");
        // With the default output folder, which `eval` and `predict` then use too.
        let summary = json(&mut mnist(
            &base,
            &["--epochs", "2", "--device", "flex", "--json"],
        ));
        (base, summary)
    })
}

#[test]
fn training_writes_all_its_files_and_no_others() {
    let (base, summary) = trained();
    let run = base.join("artifacts/mnist");
    assert_eq!(names(&run), ALL_FILES);
    assert_eq!(names(base), ["artifacts"]);
    assert_eq!(names(&base.join("artifacts")), ["mnist"]);
    let saved: Value =
        serde_json::from_slice(&fs::read(run.join("summary.json")).expect("read")).expect("JSON");
    assert_eq!(saved, *summary);
    assert_eq!(summary["device"], "flex");
    assert_eq!(number(summary, "epochs"), 2.0);
    assert!(number(summary, "test_accuracy") > 0.75, "{summary}");
    assert!(number(summary, "test_loss") < 0.8, "{summary}");
    assert!(
        number(summary, "train_images_per_second") > 1000.0,
        "{summary}"
    );
    assert_eq!(summary["classes"].as_array().map(Vec::len), Some(10));
    for picture in ["learning-curves.png", "confusion-matrix.png"] {
        let image = image::open(run.join(picture)).expect("a PNG file");
        assert!(image.width() > 600 && image.height() > 400, "{picture}");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(run.join("config.json")).expect("read")).expect("JSON");
    assert_eq!(config["model"]["hidden"], 50);
    assert_eq!(epochs(&run).len(), 2);
}

#[test]
fn training_prints_progress_and_tables() {
    let base = folder();
    let output = mnist(
        base.path(),
        &[
            "train", "--epochs", "1", "--input", "100", "--device", "flex",
        ],
    )
    .output()
    .expect("the program starts");
    let (results, progress) = (text(&output.stdout), text(&output.stderr));
    for part in [
        "train",
        "validation",
        "test",
        "Ankle boot",
        "images/s",
        "100 -> Dense(50)",
    ] {
        assert!(results.contains(part), "`{part}` is not in\n{results}");
    }
    assert!(
        progress.contains("epoch 1/1") && progress.contains("valid loss"),
        "{progress}"
    );
}

#[test]
fn evaluation_repeats_the_test_exactly() {
    let (base, summary) = trained();
    let report = json(&mut mnist(base, &["eval", "--json"]));
    for key in ["test_loss", "test_accuracy", "test_images"] {
        assert_eq!(report[key], summary[key], "{key}");
    }
    assert_eq!(report["classes"], summary["classes"]);
    assert!(succeed(&mut mnist(base, &["eval"])).contains("Ankle boot"));
    // Another device computes in another order, so it only comes close.
    let other = json(&mut mnist(base, &["eval", "--json", "--device", "ndarray"]));
    assert_eq!(other["device"], "ndarray");
    assert!((number(&other, "test_loss") - number(summary, "test_loss")).abs() < 1e-4);
}

#[test]
fn ndarray_trains_with_burns_own_layer_before_the_activation() {
    let base = folder();
    let flags = [
        "--device",
        "ndarray",
        "--epochs",
        "1",
        "--input",
        "100",
        "--norm",
        "burn",
        "--bn-before-activation",
    ];
    let summary = json(&mut mnist(
        base.path(),
        &[&flags[..], &["--out", "run", "--json"]].concat(),
    ));
    assert_eq!(summary["device"], "ndarray");
    assert!(number(&summary, "test_accuracy") > 0.7, "{summary}");
    assert!(
        summary["model"]
            .as_str()
            .is_some_and(|model| model.contains("(burn-nn) -> ReLU"))
    );
    let report = json(&mut mnist(
        base.path(),
        &["eval", "--model", "run", "--json"],
    ));
    assert_eq!(report["test_loss"], summary["test_loss"]);
}

#[test]
fn wgpu_trains_and_evaluates() {
    // Tuning tries out kernels that a software adapter takes seconds to compile.
    let wgpu = |folder: &Path, arguments: &[&str]| {
        let mut command = mnist(folder, arguments);
        command.env("CUBECL_AUTOTUNE_LEVEL", "minimal");
        command
    };
    let base = folder();
    let devices = json(&mut wgpu(base.path(), &["devices", "--json"]));
    let names = devices
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|device| device["name"].as_str());
    let Some(device) = names.into_iter().find(|name| name.starts_with("wgpu:")) else {
        let required = std::env::var_os("BATCHNORM_REQUIRE_GPU").is_some_and(|value| value == "1");
        assert!(
            !required,
            "BATCHNORM_REQUIRE_GPU=1, but there is no adapter: {devices}"
        );
        println!("skipped: no adapter");
        return;
    };
    // Batches of one size: a software adapter spends its time on compiling a kernel for each shape.
    let data = small_data(base.path());
    let data = data.to_str().expect("UTF-8");
    let train = |device: &str, out: &str| {
        let flags = [
            "--device",
            device,
            "--data",
            data,
            "--epochs",
            "4",
            "--validation",
            "0.5",
            "--out",
            out,
            "--json",
        ];
        json(&mut wgpu(base.path(), &flags))
    };
    let summary = train(device, "run");
    assert_eq!(summary["device"], device);
    assert!(number(&summary, "train_accuracy") > 0.3, "{summary}");
    let report = json(&mut wgpu(
        base.path(),
        &["eval", "--model", "run", "--json"],
    ));
    assert!((number(&report, "test_loss") - number(&summary, "test_loss")).abs() < 1e-6);
    // The same run on the CPU: from equal weights and equal batches, the losses of every epoch agree.
    // Measured: 3e-7 at most; the bound leaves room for other orders of the sums.
    train("flex", "flex");
    let [wgpu, flex] = ["run", "flex"].map(|out| {
        let path = base.path().join(out).join("metrics.csv");
        History::load(&path).expect("metrics.csv").rows
    });
    assert_eq!(wgpu.len(), 4);
    for (wgpu, flex) in wgpu.iter().zip(&flex) {
        let valid = [wgpu, flex].map(|row| row.valid_loss.expect("a validation loss"));
        for (name, [wgpu, flex]) in [
            ("train", [wgpu.train_loss, flex.train_loss]),
            ("validation", valid),
        ] {
            let difference = wgpu - flex;
            assert!(
                difference.abs() < 1e-5,
                "{name} loss differs by {difference:e}"
            );
        }
    }
}

#[test]
fn threads_do_not_change_the_numbers() {
    let base = folder();
    for device in ["flex", "ndarray"] {
        let run = |threads: &str| {
            let out = format!("{device}-{threads}");
            let flags = [
                "--device",
                device,
                "--epochs",
                "1",
                "--hidden",
                "256",
                "--batch-size",
                "256",
                "--out",
                &out,
                "--json",
            ];
            let mut command = mnist(base.path(), &flags);
            let summary = json(command.env("RAYON_NUM_THREADS", threads));
            (
                summary["test_loss"].clone(),
                summary["train_loss"].clone(),
                epochs(&base.path().join(out)),
            )
        };
        assert_eq!(run("1"), run("2"), "{device}");
    }
}

#[test]
fn seeds_change_the_numbers() {
    let base = folder();
    let run = |seed: &str| {
        let flags = [
            "--device", "flex", "--epochs", "1", "--seed", seed, "--out", seed, "--json",
        ];
        json(&mut mnist(base.path(), &flags))["test_loss"].clone()
    };
    assert_ne!(run("1"), run("2"));
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let base = folder();
    let run = |out: &str, flags: &[&str]| {
        json(&mut mnist(
            base.path(),
            &[&["--device", "flex", "--json", "--out", out], flags].concat(),
        ))
    };
    let whole = run("whole", &["--epochs", "4"]);
    run("parts", &["--epochs", "2"]);
    let parts = run("parts", &["--epochs", "4", "--resume"]);
    for key in [
        "train_loss",
        "validation_loss",
        "test_loss",
        "test_accuracy",
        "epochs",
    ] {
        assert_eq!(whole[key], parts[key], "{key}");
    }
    assert_eq!(
        epochs(&base.path().join("whole")),
        epochs(&base.path().join("parts"))
    );
    assert_eq!(names(&base.path().join("parts")), ALL_FILES);

    fail(
        &mut mnist(base.path(), &["--resume", "--out", "parts"]),
        1,
        &["has finished 4 epochs", "--epochs"],
    );
    let flags = ["--resume", "--out", "parts", "--epochs", "9", "--lr", "0.5"];
    fail(&mut mnist(base.path(), &flags), 1, &["--lr 0.001", "0.5"]);
    let flags = [
        "--resume", "--out", "parts", "--epochs", "9", "--norm", "none",
    ];
    fail(
        &mut mnist(base.path(), &flags),
        1,
        &["--norm batch", "none"],
    );
    fail(
        &mut mnist(base.path(), &["--resume", "--out", "new"]),
        1,
        &["nothing to resume in new"],
    );
    assert!(!base.path().join("new").exists());
}

#[test]
fn early_stopping_saves_the_best_epoch() {
    let base = folder();
    let flags = [
        "--device",
        "flex",
        "--lr",
        "0.1",
        "--epochs",
        "60",
        "--early-stopping",
        "2",
        "--out",
        "run",
        "--json",
    ];
    let summary = json(&mut mnist(base.path(), &flags));
    let rows = epochs(&base.path().join("run"));
    assert!(rows.len() < 60, "it never stopped");
    let losses: Vec<f64> = rows
        .iter()
        .map(|row| {
            row.split(',')
                .nth(3)
                .expect("a column")
                .parse()
                .expect("a number")
        })
        .collect();
    let best = (0..losses.len())
        .min_by(|a, b| losses[*a].total_cmp(&losses[*b]))
        .expect("epochs");
    assert_eq!(
        losses.len() - 1 - best,
        2,
        "two epochs after the best: {losses:?}"
    );
    assert_eq!(number(&summary, "model_epoch"), (best + 1) as f64);
    assert!((number(&summary, "validation_loss") - losses[best]).abs() < 1e-9);
    let report = json(&mut mnist(
        base.path(),
        &["eval", "--model", "run", "--json"],
    ));
    assert_eq!(report["test_loss"], summary["test_loss"]);
}

#[test]
#[cfg(unix)]
fn ctrl_c_keeps_the_last_checkpoint() {
    let base = folder();
    let mut child = mnist(
        base.path(),
        &["--device", "flex", "--epochs", "100000", "--out", "run"],
    )
    .stdout(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .expect("the program starts");
    let checkpoint = base.path().join("run/checkpoint/scheduler-3.bpk");
    let start = std::time::Instant::now();
    while !checkpoint.exists() && start.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let mut message = String::new();
    std::io::Read::read_to_string(child.stderr.as_mut().expect("piped"), &mut message)
        .expect("text");
    assert_eq!(
        child.wait().expect("it ends").code(),
        Some(130),
        "{message}"
    );
    assert!(message.contains("--resume --out run"), "{message}");
    fail(
        &mut mnist(base.path(), &["eval", "--model", "run"]),
        1,
        &["model.bpk is missing"],
    );

    let done = epochs(&base.path().join("run")).len();
    let all = (done + 1).to_string();
    let flags = ["--resume", "--epochs", &all, "--out", "run", "--json"];
    let summary = json(&mut mnist(base.path(), &flags));
    assert_eq!(number(&summary, "epochs"), (done + 1) as f64);
    // The same as if nothing had happened.
    let flags = [
        "--device", "flex", "--epochs", &all, "--out", "whole", "--json",
    ];
    let whole = json(&mut mnist(base.path(), &flags));
    assert_eq!(summary["test_loss"], whole["test_loss"]);
}

#[test]
fn prediction_knows_most_test_images_in_any_form() {
    let (base, _) = trained();
    let images = folder();
    let set = embedded();
    let mut files = Vec::new();
    for at in 0..40 {
        let pixels = &set.test.pixels[at * 784..][..784];
        let gray = image::GrayImage::from_raw(28, 28, pixels.to_vec()).expect("28x28");
        let path = images.path().join(format!("{at}.png"));
        gray.save(&path).expect("saved");
        files.push(path.to_str().expect("UTF-8").to_string());
    }
    let mut flags = vec!["predict", "--json"];
    flags.extend(files.iter().map(String::as_str));
    let predictions = json(&mut mnist(base, &flags));
    let top: Vec<u64> = predictions
        .as_array()
        .expect("a list")
        .iter()
        .map(|prediction| prediction["classes"][0]["label"].as_u64().expect("a label"))
        .collect();
    let right = top
        .iter()
        .zip(&set.test.labels)
        .filter(|(top, label)| **top == u64::from(**label))
        .count();
    assert!(right >= 28, "{right} of 40");

    // The same image large, in colour, dark on light, as JPEG.
    let gray = image::open(&files[0]).expect("an image").to_luma8();
    let large = image::imageops::resize(&gray, 280, 280, image::imageops::FilterType::Nearest);
    let large = image::RgbImage::from_fn(280, 280, |x, y| {
        image::Rgb([255 - large.get_pixel(x, y).0[0]; 3])
    });
    let path = images.path().join("large.jpg");
    large.save(&path).expect("saved");
    let path = path.to_str().expect("UTF-8");
    let same = json(&mut mnist(
        base,
        &["predict", "--json", "--invert", "--top", "10", path],
    ));
    assert_eq!(
        same[0]["classes"][0]["label"],
        predictions[0]["classes"][0]["label"]
    );
    assert_eq!(same[0]["classes"].as_array().map(Vec::len), Some(10));
    let plain = succeed(&mut mnist(base, &["predict", "--invert", path]));
    assert!(
        plain.contains("large.jpg") && plain.matches('%').count() == 3,
        "{plain}"
    );

    fail(
        &mut mnist(base, &["predict", "missing.png"]),
        1,
        &["missing.png", "PNG and JPEG"],
    );
    fail(
        &mut mnist(base, &["predict", "artifacts/mnist/config.json"]),
        1,
        &["config.json", "PNG and JPEG"],
    );
    fail(&mut mnist(base, &["predict"]), 2, &["IMAGE"]);
}

#[test]
fn comparison_writes_picture_table_and_json() {
    let base = folder();
    let flags = [
        "compare",
        "--device",
        "flex",
        "--seeds",
        "2",
        "--lrs",
        "0.001,0.01",
        "--epochs",
        "1",
        "--input",
        "100",
    ];
    let result = json(&mut mnist(
        base.path(),
        &[
            &flags[..],
            &["--norms", "batch,burn,none", "--out", "cmp", "--json"],
        ]
        .concat(),
    ));
    assert_eq!(
        names(&base.path().join("cmp")),
        ["compare.json", "compare.png", "compare.txt"]
    );
    assert_eq!(result["runs"].as_array().map(Vec::len), Some(12));
    let groups = result["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 6);
    for group in groups {
        assert!(number(group, "test_accuracy") > 0.4, "{group}");
        assert!(number(group, "microseconds_per_step") > 1.0, "{group}");
        assert!(number(group, "test_accuracy_spread") >= 0.0, "{group}");
    }
    let table = fs::read_to_string(base.path().join("cmp/compare.txt")).expect("read");
    assert!(
        table.contains("burn") && table.contains("never") | table.contains("1.0"),
        "{table}"
    );
    assert!(image::open(base.path().join("cmp/compare.png")).is_ok());
    let flags = ["compare", "--lrs", "0.1,0.1", "--out", "other"];
    fail(
        &mut mnist(base.path(), &flags),
        1,
        &["--lrs holds a learning rate twice"],
    );
    assert!(!base.path().join("other").exists());
}

#[test]
fn devices_are_listed() {
    let base = folder();
    let devices = json(&mut mnist(base.path(), &["devices", "--json"]));
    let devices = devices.as_array().expect("a list");
    for name in ["flex", "ndarray"] {
        assert!(
            devices
                .iter()
                .any(|device| device["name"] == name && device["kind"] == "CPU"),
            "{name}"
        );
    }
    assert!(devices.iter().all(|device| {
        device["adapter"]
            .as_str()
            .is_some_and(|adapter| !adapter.is_empty())
    }));
    let plain = succeed(&mut mnist(base.path(), &["devices"]));
    assert!(
        plain.contains("flex") && plain.contains("auto is "),
        "{plain}"
    );
}

#[test]
fn early_failures_write_nothing() {
    let base = folder();
    for (flags, status, parts) in [
        (
            vec!["--device", "cuda"],
            1,
            vec!["unknown device `cuda`", "flex (CPU)", "ndarray (CPU)"],
        ),
        (
            vec!["--device", "wgpu:77"],
            1,
            vec!["no device `wgpu:77`", "flex (CPU)"],
        ),
        (
            vec!["--data", "no/such/folder"],
            1,
            vec!["no/such/folder", "four IDX files"],
        ),
        (vec!["--epochs", "0"], 2, vec!["--epochs", "1..="]),
        (vec!["--batch-size", "1"], 2, vec!["--batch-size"]),
        (vec!["--lr", "-1"], 2, vec!["--lr"]),
        (vec!["--norm", "layer"], 2, vec!["--norm", "batch"]),
        (vec!["--input", "28"], 2, vec!["--input", "784"]),
        (
            vec!["--early-stopping", "2", "--validation", "0"],
            1,
            vec!["--early-stopping", "--validation"],
        ),
        (
            vec!["eval"],
            1,
            vec!["config.json is missing", "mnist train"],
        ),
        (
            vec!["predict", "a.png"],
            1,
            vec!["config.json is missing", "mnist train"],
        ),
        (vec!["fly"], 2, vec!["fly"]),
    ] {
        fail(&mut mnist(base.path(), &flags), status, &parts);
        assert!(
            names(base.path()).is_empty(),
            "{flags:?} left {:?}",
            names(base.path())
        );
    }
}

#[test]
fn damaged_data_is_named_by_file_and_byte() {
    let base = folder();
    let data = small_data(base.path());
    let images = data.join("train-images-idx3-ubyte");
    let labels = data.join("t10k-labels-idx1-ubyte");
    let flags = [
        "--data",
        data.to_str().expect("UTF-8"),
        "--device",
        "flex",
        "--out",
        "run",
    ];
    let whole = (
        fs::read(&images).expect("read"),
        fs::read(&labels).expect("read"),
    );
    let check = |path: &Path, content: &[u8], parts: &[&str]| {
        fs::write(path, content).expect("written");
        fail(&mut mnist(base.path(), &flags), 1, parts);
        assert!(!base.path().join("run").exists());
    };
    let (image_name, label_name) = ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte");
    check(
        &images,
        &whole.0[..5000],
        &[image_name, "truncated", "byte 5000", "250896"],
    );
    check(
        &images,
        &whole.1,
        &[image_name, "magic", "byte 0", "0x00000803", "0x00000801"],
    );
    fs::write(&images, &whole.0).expect("written");
    let mut content = whole.1.clone();
    content[8 + 7] = 10;
    check(
        &labels,
        &content,
        &[label_name, "label 10", "byte 15", "0 to 9"],
    );
    let mut content = whole.1[..8 + 100].to_vec();
    content[7] = 100;
    check(
        &labels,
        &content,
        &[
            "t10k-images-idx3-ubyte",
            "160 images",
            label_name,
            "100 labels",
        ],
    );
    fs::remove_file(&labels).expect("removed");
    fail(
        &mut mnist(base.path(), &flags),
        1,
        &[label_name, "is missing", "few-fashion"],
    );
    fs::write(&labels, &whole.1).expect("written");
    succeed(&mut mnist(
        base.path(),
        &[&flags[..], &["--epochs", "1"]].concat(),
    ));
}

#[test]
fn a_download_without_network_says_so() {
    let base = folder();
    let mut command = mnist(
        base.path(),
        &["--data", "mnist", "--device", "flex", "--out", "run"],
    );
    // Nothing listens on the discard port, and the cache is empty.
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    for name in ["NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    command
        .env("XDG_CACHE_HOME", base.path().join("cache"))
        .env("HOME", base.path());
    fail(
        &mut command,
        1,
        &["cannot download MNIST", "offline", "--data embedded"],
    );
    assert!(!base.path().join("run").exists());
}

#[test]
fn folders_of_others_are_left_alone() {
    let base = folder();
    fs::write(base.path().join("thesis.tex"), "text").expect("written");
    fail(
        &mut mnist(base.path(), &["--out", "."]),
        1,
        &["not empty", "--out"],
    );
    assert_eq!(names(base.path()), ["thesis.tex"]);
    fs::write(base.path().join("file"), "text").expect("written");
    fail(&mut mnist(base.path(), &["--out", "file"]), 1, &["file"]);
    fail(
        &mut mnist(base.path(), &["--out", "file/run"]),
        1,
        &["file/run"],
    );
}

#[test]
fn damaged_models_are_named() {
    let base = folder();
    let flags = [
        "--device", "flex", "--epochs", "1", "--input", "100", "--out", "run",
    ];
    succeed(&mut mnist(base.path(), &flags));
    let run = base.path().join("run");
    let model = fs::read(run.join("model.bpk")).expect("read");
    fs::write(run.join("model.bpk"), &model[..model.len() / 2]).expect("written");
    let eval = ["eval", "--model", "run"];
    fail(&mut mnist(base.path(), &eval), 1, &["model.bpk", "damaged"]);
    fs::write(run.join("model.bpk"), &model).expect("written");

    let config = fs::read_to_string(run.join("config.json")).expect("read");
    let other = config.replace("\"hidden\": 50", "\"hidden\": 51");
    assert_ne!(config, other);
    fs::write(run.join("config.json"), other).expect("written");
    fail(&mut mnist(base.path(), &eval), 1, &["model.bpk", "damaged"]);
    fs::write(run.join("config.json"), "{").expect("written");
    fail(
        &mut mnist(base.path(), &eval),
        1,
        &["config.json", "damaged"],
    );
    fs::write(
        run.join("config.json"),
        config.replace("\"format\": 1", "\"format\": 9"),
    )
    .expect("written");
    fail(
        &mut mnist(base.path(), &eval),
        1,
        &["config.json", "format 9"],
    );
    fs::write(run.join("config.json"), config).expect("written");
    succeed(&mut mnist(base.path(), &eval));
}
