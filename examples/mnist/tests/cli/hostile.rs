//! Wrong flags, damaged files, full disks, other people's folders: an error that names the cause,
//! and nothing changed.

use crate::*;

#[test]
fn early_failures_write_nothing() {
    let base = folder();
    for (flags, status, parts) in [
        (
            "--device cuda",
            1,
            "`cuda` is not compiled in: build with `--features cuda`|flex (CPU)|ndarray (CPU)",
        ),
        (
            "--device gpu",
            1,
            "unknown device `gpu`|flex (CPU)|ndarray (CPU)",
        ),
        ("--device wgpu:77", 1, "no device `wgpu:77`|flex (CPU)"),
        ("--data no/such/folder", 1, "no/such/folder|four IDX files"),
        ("--epochs 0", 2, "--epochs|1..="),
        ("--batch-size 1", 2, "--batch-size"),
        ("--lr -1", 2, "--lr"),
        ("--norm layer", 2, "--norm|batch"),
        ("--input 28", 2, "--input|784"),
        (
            "--early-stopping 2 --validation 0",
            1,
            "--early-stopping|--validation",
        ),
        (
            "--validation 0.00001 --early-stopping 1",
            1,
            "--validation 0.00001 of 7000 images is no image",
        ),
        (
            "compare --validation 0.00001",
            1,
            "--validation 0.00001 of 7000 images is no image",
        ),
        ("compare --validation 0", 1, "--validation must be above 0"),
        ("compare --lrs 0.1,0.1", 1, "--lrs holds 0.1 twice"),
        (
            "--progress dashboard",
            1,
            "--progress dashboard needs a terminal",
        ),
        (
            "eval",
            1,
            "config.json is missing|cargo run --release -p mnist -- train --out artifacts/mnist",
        ),
        (
            "predict a.png",
            1,
            "config.json is missing|cargo run --release -p mnist -- train",
        ),
        ("predict", 2, "IMAGE"),
        ("fly", 2, "fly"),
    ] {
        fail(&mut mnist(&base, flags), status, parts);
        assert!(names(&base).is_empty(), "{flags} left {:?}", names(&base));
    }
}

#[test]
fn damaged_data_is_named_by_file_and_byte() {
    let base = folder();
    let data = small_data(&base);
    let run = || {
        let mut command = mnist(&base, "--device flex --epochs 1 --out run --data");
        command.arg(&data);
        command
    };
    let (image_name, label_name) = ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte");
    let [images, labels] =
        [image_name, label_name].map(|name| fs::read(data.join(name)).expect("read"));
    let check = |name: &str, content: &[u8], parts: &str| {
        let whole = fs::read(data.join(name)).expect("read");
        fs::write(data.join(name), content).expect("written");
        fail(&mut run(), 1, &format!("{name}|{parts}"));
        fs::write(data.join(name), whole).expect("written");
        assert!(!base.at("run").exists());
    };
    check(image_name, &images[..5000], "truncated|byte 5000|250896");
    check(image_name, &labels, "magic|byte 0|0x00000803|0x00000801");
    let mut ten = labels.clone();
    ten[8 + 7] = 10;
    check(label_name, &ten, "label 10|byte 15|0 to 9");
    let mut few = labels[..8 + 100].to_vec();
    few[7] = 100;
    check(
        label_name,
        &few,
        "t10k-images-idx3-ubyte|160 images|100 labels",
    );
    fs::remove_file(data.join(label_name)).expect("removed");
    fail(
        &mut run(),
        1,
        &format!("{label_name}|is missing|few-fashion"),
    );
    fs::write(data.join(label_name), &labels).expect("written");
    succeed(&mut run());
}

#[test]
fn a_download_without_network_or_downloader_says_so() {
    let base = folder();
    let mut command = mnist(&base, "--data mnist --device flex --out run");
    // Nothing listens on the discard port, and the cache is empty.
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    for name in ["NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    command
        .env("XDG_CACHE_HOME", base.at("cache"))
        .env("HOME", base.at(""));
    fail(
        &mut command,
        1,
        match cfg!(feature = "download") {
            true => "cannot download MNIST|offline|--data embedded",
            false => "--features download|--data DIR|--data embedded",
        },
    );
    assert!(!base.at("run").exists());
}

/// `config.json` is the most common file name there is, and `checkpoint/` the most common folder.
#[test]
fn folders_of_others_are_left_alone() {
    let base = folder();
    let others = base.at("hf");
    fs::create_dir_all(others.join("checkpoint")).expect("created");
    let files = [
        (
            "config.json",
            "{\"architectures\": [\"BertModel\"], \"format\": 2}",
        ),
        ("model.safetensors", "weights"),
        ("checkpoint/step-1000.pt", "precious"),
    ];
    for (name, content) in files {
        fs::write(others.join(name), content).expect("written");
    }
    for flags in [
        "--epochs 1 --out hf",
        "--resume --out hf",
        "--epochs 1 --out hf/checkpoint",
    ] {
        refuse(&base, flags, "--out|not empty");
    }
    for (name, content) in files {
        assert_eq!(
            fs::read_to_string(others.join(name)).expect("read"),
            content
        );
    }
    assert_eq!(names(&others), "checkpoint config.json model.safetensors");

    fs::write(base.at("compare.png"), "a picture").expect("written");
    let flags = "compare --seeds 1 --lrs 0.01 --epochs 1 --out .";
    refuse(&base, flags, "of something else|--out");
    refuse(&base, "--out compare.png", "compare.png");
    refuse(&base, "--out compare.png/run", "compare.png/run");
    assert_eq!(names(&base), "compare.png hf");

    // In a folder of our own, files of others stay.
    succeed(&mut mnist(
        &base,
        "--epochs 1 --input 100 --device flex --out run",
    ));
    for name in ["run/notes.txt", "run/checkpoint/step-1000.pt"] {
        fs::write(base.at(name), "precious").expect("written");
    }
    succeed(&mut mnist(
        &base,
        "--epochs 1 --input 100 --device flex --out run",
    ));
    for name in ["run/notes.txt", "run/checkpoint/step-1000.pt"] {
        assert_eq!(fs::read_to_string(base.at(name)).expect("read"), "precious");
    }
}

/// Nobody has to listen: training goes on to its end, and does not hang.
#[test]
#[cfg(target_os = "linux")]
fn closed_streams_do_not_stop_training() {
    let base = folder();
    for round in 0..4 {
        let full = || {
            fs::File::options()
                .write(true)
                .open("/dev/full")
                .expect("Linux")
        };
        let mut command = mnist(
            &base,
            &format!("--device flex --epochs 3 --out full-{round}"),
        );
        let child = command
            .stdout(Stdio::null())
            .stderr(full())
            .spawn()
            .expect("starts");
        assert!(end(child).status.success(), "round {round}");

        // A pipe whose reader is gone, as with `| head -1`.
        let mut command = mnist(
            &base,
            &format!("--device flex --epochs 3 --out pipe-{round}"),
        );
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        drop((child.stdout.take(), child.stderr.take()));
        assert!(end(child).status.success(), "round {round}");
        for out in ["full", "pipe"] {
            assert_eq!(names(base.at(format!("{out}-{round}"))), ALL_FILES);
        }
    }
    let full = fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("Linux");
    let output = mnist(&base, "devices")
        .stdout(full)
        .output()
        .expect("starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write to standard output"));
}

#[test]
fn damaged_models_are_named() {
    let base = folder();
    succeed(&mut mnist(
        &base,
        "--device flex --epochs 1 --input 100 --out run",
    ));
    let run = base.at("run");
    let eval = || mnist(&base, "eval --model run");
    let model = fs::read(run.join("model.bpk")).expect("read");
    fs::write(run.join("model.bpk"), &model[..model.len() / 2]).expect("written");
    fail(&mut eval(), 1, "model.bpk is damaged");
    fs::write(run.join("model.bpk"), &model).expect("written");
    let config = fs::read_to_string(run.join("config.json")).expect("read");
    let other = config.replace("\"hidden\": 50", "\"hidden\": 51");
    assert_ne!(config, other);
    fs::write(run.join("config.json"), other).expect("written");
    fail(
        &mut eval(),
        1,
        "model.bpk does not fit config.json, which describes 100 -> Dense(51)",
    );
    fs::write(run.join("config.json"), "{").expect("written");
    fail(&mut eval(), 1, "config.json is damaged");
    fs::write(run.join("config.json"), config).expect("written");
    succeed(&mut eval());
}

#[test]
fn edited_settings_are_checked_as_flags_are() {
    let base = folder();
    succeed(&mut mnist(
        &base,
        "--device flex --epochs 1 --input 100 --out run",
    ));
    let paths = ["run/config.json", "run/checkpoint/config.json"].map(|path| base.at(path));
    let config = read_json(&paths[0]);
    for (place, value, part) in [
        ("/format", "9", "format 9, expected 2"),
        ("/program", "\"bert\"", "not empty"),
        ("/model/input", "785", "input is 785"),
        ("/model/hidden", "0", "hidden is 0"),
        ("/model/hidden", "999999999999", "hidden is 999999999999"),
        ("/training/validation", "7", "validation is 7"),
        ("/training/epochs", "0", "epochs is 0"),
        ("/training/batch_size", "0", "batch_size is 0"),
        ("/training/learning_rate", "-1", "learning_rate is -1"),
        ("/training/early_stopping", "0", "early_stopping is 0"),
        ("/scale/deviation", "0", "deviation is 0"),
        (
            "/class_names",
            "[\"a\", \"b\", \"c\"]",
            "class_names holds 3 names",
        ),
        ("/device", "7", "expected a string"),
    ] {
        let mut edited = config.clone();
        *edited.pointer_mut(place).expect(place) = serde_json::from_str(value).expect("JSON");
        for path in &paths {
            fs::write(path, edited.to_string()).expect("written");
        }
        refuse(&base, "--resume --epochs 4 --out run", part);
        if place != "/program" {
            refuse(&base, "eval --model run", &format!("config.json|{part}"));
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn names_that_are_no_utf_8_are_printed_or_refused() {
    use std::os::unix::ffi::OsStrExt;
    let (base, _) = trained();
    let odd = folder();
    let name = std::ffi::OsStr::from_bytes(b"shoe-\xff.png");
    let image = image::GrayImage::from_pixel(28, 28, image::Luma([9]));
    image
        .save_with_format(odd.at(name), image::ImageFormat::Png)
        .expect("saved");
    let predictions = json(mnist(base, "predict").arg(odd.at(name)));
    assert!(
        predictions[0]["image"]
            .as_str()
            .is_some_and(|name| name.ends_with("shoe-\u{fffd}.png"))
    );

    // Training on data that a later command could not find again is refused at once.
    let cwd = odd.at(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::create_dir(&cwd).expect("created");
    small_data(&cwd);
    refuse(&cwd, "--data few-fashion --out run", "--data is not UTF-8");
    assert_eq!(names(&cwd), "few-fashion");
}
