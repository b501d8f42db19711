//! What training prints and writes, and that its numbers depend on nothing but its settings.

use crate::*;
use mnist::history::History;

#[test]
fn training_writes_all_its_files_and_no_others() {
    let (base, summary) = trained();
    let run = base.join("artifacts/mnist");
    assert_eq!(names(&run), ALL_FILES);
    assert_eq!(
        names(base) + "/" + &names(base.join("artifacts")),
        "artifacts/mnist"
    );
    assert_eq!(read_json(run.join("summary.json")), *summary);
    assert_eq!(
        (summary["device"].as_str(), number(summary, "epochs")),
        (Some("flex"), 2.0)
    );
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
    assert_eq!(read_json(run.join("config.json"))["model"]["hidden"], 50);
    assert_eq!(epochs(&run).len(), 2);
}

#[test]
fn training_prints_progress_and_tables() {
    let base = folder();
    let output = mnist(&base, "train --epochs 1 --input 100 --device flex").output();
    let output = output.expect("the program starts");
    let (results, progress) = (text(&output.stdout), text(&output.stderr));
    for part in [
        "train",
        "validation",
        "test",
        "Ankle boot",
        "images/s",
        "100 -> Dense(50)",
        "\n1 epoch on flex",
    ] {
        assert!(results.contains(part), "`{part}` is not in\n{results}");
    }
    assert!(
        progress.contains("epoch 1/1") && progress.contains("valid loss"),
        "{progress}"
    );
}

/// The last of ten epochs is as fast as the first. Denormals, which grow with the epochs, made it
/// three times slower on many processors; `training::tests` looks for them. Other work of this
/// machine disturbs a run of a second, so the best of five counts.
#[test]
fn the_last_epoch_is_as_fast_as_the_first() {
    let base = folder();
    let ratio = |_| {
        report(&base, "--device flex --out run");
        let rows = History::load(&base.at("run/metrics.csv"))
            .expect("metrics.csv")
            .rows;
        assert_eq!(rows.len(), 10);
        rows[9].train_images_per_second / rows[0].train_images_per_second
    };
    let ratios: Vec<f64> = (0..5).map(ratio).collect();
    assert!(ratios.iter().any(|ratio| *ratio >= 0.8), "{ratios:?}");
}

#[test]
fn evaluation_repeats_the_test_exactly() {
    let (base, summary) = trained();
    let again = report(base, "eval");
    for key in ["test_loss", "test_accuracy", "test_images", "classes"] {
        assert_eq!(again[key], summary[key], "{key}");
    }
    assert!(succeed(&mut mnist(base, "eval")).contains("Ankle boot"));
    // Another device computes in another order, so it only comes close.
    let other = report(base, "eval --device ndarray");
    assert_eq!(other["device"], "ndarray");
    assert!((number(&other, "test_loss") - number(summary, "test_loss")).abs() < 1e-4);
}

#[test]
fn ndarray_trains_with_burns_own_layer_before_the_activation() {
    let base = folder();
    let flags =
        "--device ndarray --epochs 1 --input 100 --norm burn --bn-before-activation --out run";
    let summary = report(&base, flags);
    assert_eq!(summary["device"], "ndarray");
    assert!(number(&summary, "test_accuracy") > 0.7, "{summary}");
    assert!(
        summary["model"]
            .as_str()
            .is_some_and(|model| model.contains("(burn-nn) -> ReLU"))
    );
    let report = report(&base, "eval --model run");
    assert_eq!(report["test_loss"], summary["test_loss"]);
}

/// Other programs find the layer under the same names, whichever layer it is.
#[test]
fn safetensors_names_are_those_of_the_layers() {
    let base = folder();
    for norm in ["batch", "burn"] {
        report(
            &base,
            &format!("--device flex --epochs 1 --input 100 --norm {norm} --out {norm}"),
        );
        let file = fs::read(base.at(norm).join("model.safetensors")).expect("read");
        let length = u64::from_le_bytes(file[..8].try_into().expect("a length")) as usize;
        let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("JSON");
        let header = header.as_object().expect("names");
        for name in [
            "dense.weight",
            "norm.gamma",
            "norm.beta",
            "norm.running_mean",
            "norm.running_var",
            "output.bias",
        ] {
            assert!(
                header.contains_key(name),
                "{name} is not in {:?}",
                header.keys()
            );
        }
    }
}

#[test]
fn wgpu_trains_and_evaluates() {
    // Tuning tries out kernels that a software adapter takes seconds to compile.
    let wgpu = |folder: &Base, flags: &str| {
        let mut command = mnist(folder, flags);
        command.env("CUBECL_AUTOTUNE_LEVEL", "minimal");
        command
    };
    let base = folder();
    let devices = json(&mut wgpu(&base, "devices"));
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
    let data = small_data(&base);
    let train = |device: &str, out: &str| {
        let flags = format!("--device {device} --epochs 4 --validation 0.5 --out {out} --data");
        json(wgpu(&base, &flags).arg(&data))
    };
    let summary = train(device, "run");
    assert_eq!(summary["device"], device);
    assert!(number(&summary, "train_accuracy") > 0.3, "{summary}");
    let report = json(&mut wgpu(&base, "eval --model run"));
    assert!((number(&report, "test_loss") - number(&summary, "test_loss")).abs() < 1e-6);
    // The same run on the CPU: from equal weights and equal batches, the losses of every epoch agree.
    // Measured: 2e-6 at most; the bound leaves room for other orders of the sums.
    train("flex", "flex");
    let [wgpu, flex] = ["run", "flex"].map(|out| {
        History::load(&base.at(out).join("metrics.csv"))
            .expect("metrics.csv")
            .rows
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
                difference.abs() < 2e-5,
                "{name} loss differs by {difference:e}"
            );
        }
    }
}

#[test]
fn threads_do_not_change_the_numbers_and_seeds_do() {
    let base = folder();
    for device in ["flex", "ndarray"] {
        let run = |threads: &str, seed: u64| {
            let out = format!("{device}-{threads}-{seed}");
            let flags = format!(
                "--device {device} --epochs 1 --hidden 256 --batch-size 256 --seed {seed} --out {out}"
            );
            let summary = json(mnist(&base, &flags).env("RAYON_NUM_THREADS", threads));
            (
                summary["test_loss"].clone(),
                summary["train_loss"].clone(),
                epochs(base.at(out)),
            )
        };
        let one = run("1", 42);
        assert_eq!(one, run("2", 42), "{device}");
        assert_ne!(one, run("1", 43), "{device}");
    }
}

#[test]
fn early_stopping_saves_the_best_epoch() {
    let base = folder();
    let summary = report(
        &base,
        "--device flex --lr 0.1 --epochs 60 --early-stopping 2 --out run",
    );
    let rows = History::load(&base.at("run/metrics.csv"))
        .expect("metrics.csv")
        .rows;
    assert!(rows.len() < 60, "it never stopped");
    let losses: Vec<f64> = rows
        .iter()
        .map(|row| row.valid_loss.expect("a loss"))
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
    let report = report(&base, "eval --model run");
    assert_eq!(report["test_loss"], summary["test_loss"]);
    refuse(
        &base,
        "--resume --out run",
        "stopped early after|--early-stopping",
    );
}

#[test]
fn class_names_come_from_a_flag_a_file_or_the_data() {
    let base = folder();
    // A path that says "fashion" says nothing about what is in it.
    let data = small_data(&base);
    let names = |flags: &str| {
        let summary = json(
            mnist(
                &base,
                &format!("--device flex --epochs 1 --out run {flags} --data"),
            )
            .arg(&data),
        );
        summary["classes"][9]["name"]
            .as_str()
            .expect("a name")
            .to_string()
    };
    assert_eq!(names(""), "9");
    fs::write(
        data.join("classes.txt"),
        "a\nb\nc\nd\ne\nf\ng\nh\ni\nAnkle boot\n",
    )
    .expect("written");
    assert_eq!(names(""), "Ankle boot");
    assert_eq!(names("--classes o,ki,su,tsu,na,ha,ma,ya,re,wo"), "wo");
    refuse(
        &base,
        "--classes a,b",
        "--classes takes 10 names, 2 were given",
    );
}
