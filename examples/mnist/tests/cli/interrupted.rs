//! Runs that end too early, go on, or meet another: nothing is lost, nothing is mixed.

use crate::*;

fn start(folder: impl AsRef<Path>, flags: &str) -> Child {
    let mut command = mnist(folder, flags);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: the call is async-signal-safe. These tests may themselves run under `nohup`.
    #[cfg(unix)]
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
    command.spawn().expect("the program starts")
}

fn signal(child: &Child, name: &str) {
    succeed(Command::new("kill").args([name, &child.id().to_string()]));
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let base = folder();
    let run = |flags: &str| report(&base, &format!("--device flex {flags}"));
    let whole = run("--epochs 4 --out whole");
    let half = run("--epochs 2 --out parts");
    let parts = run("--epochs 4 --out parts --resume");
    for key in "train_loss validation_loss test_loss test_accuracy epochs".split(' ') {
        assert_eq!(whole[key], parts[key], "{key}");
    }
    let [in_one, in_two] = ["whole", "parts"].map(|out| base.at(out));
    assert_eq!(epochs(&in_one), epochs(&in_two));
    assert_eq!(names(&in_two), ALL_FILES);
    // Seconds and images are those of all epochs.
    assert!(number(&parts, "train_seconds") > number(&half, "train_seconds"));
    let images = number(&parts, "train_seconds") * number(&parts, "train_images_per_second");
    assert!((images - 4.0 * 6300.0).abs() < 1.0, "{images} images");

    for (flags, parts) in [
        ("--out parts", "has finished 4 epochs|--epochs"),
        ("--out parts --epochs 9 --lr 0.5", "--lr 0.001|0.5"),
        ("--out parts --epochs 9 --norm none", "--norm batch|none"),
        (
            "--out parts --epochs 9 --classes a,b",
            "--classes T-shirt/top|a,b",
        ),
        ("--out new", "nothing to resume in new"),
    ] {
        refuse(&base, &format!("--resume {flags}"), parts);
    }
    assert!(!base.at("new").exists());
}

#[test]
#[cfg(unix)]
fn ctrl_c_and_termination_keep_the_last_checkpoint() {
    for name in ["-INT", "-TERM", "-HUP"] {
        let base = folder();
        let child = start(&base, "--device flex --epochs 100000 --out run");
        wait_for_epoch(base.at("run"), 3);
        signal(&child, name);
        let output = end(child);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{name}: {message}");
        assert!(message.contains("train --resume --out run"), "{message}");
        refuse(
            &base,
            "eval --model run",
            "config.json is missing|not finished|--resume",
        );

        let all = epochs(base.at("run/checkpoint")).len() + 1;
        let summary = report(&base, &format!("--resume --epochs {all} --out run"));
        assert_eq!(number(&summary, "epochs"), all as f64);
        // The same as if nothing had happened.
        let whole = report(&base, &format!("--device flex --epochs {all} --out whole"));
        assert_eq!(summary["test_loss"], whole["test_loss"]);
    }
}

#[test]
#[cfg(unix)]
fn nohup_is_respected() {
    let base = folder();
    let mut command = Command::new("nohup");
    command
        .arg(env!("CARGO_BIN_EXE_mnist"))
        .args("--device flex --epochs 30 --out run".split(' '));
    command
        .current_dir(&base)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().expect("nohup");
    wait_for_epoch(base.at("run"), 1);
    signal(&child, "-HUP");
    assert!(end(child).status.success());
    assert_eq!(epochs(base.at("run")).len(), 30);
}

/// A new run in the folder of a finished one replaces its results at its end, not at its start.
#[test]
#[cfg(unix)]
fn a_finished_run_stays_until_the_next_is_finished() {
    let base = folder();
    let summary = report(&base, "--device flex --epochs 1 --out run");
    let child = start(&base, "--device flex --epochs 3000 --out run --seed 7");
    wait_for_epoch(base.at("run"), 3);
    signal(&child, "-INT");
    let message = text(&end(child).stderr);
    assert!(
        message.contains("results of the run before it are still in run"),
        "{message}"
    );
    assert_eq!(
        report(&base, "eval --model run")["test_loss"],
        summary["test_loss"]
    );
    let all = epochs(base.at("run/checkpoint")).len() + 1;
    let next = report(&base, &format!("--resume --epochs {all} --out run"));
    assert_eq!(
        (number(&next, "epochs"), number(&next, "seed")),
        (all as f64, 7.0)
    );
}

/// Killed at any moment, a run ends as if it had not been.
#[test]
#[cfg(unix)]
fn a_killed_run_can_be_finished() {
    let base = folder();
    let data = small_data(&base);
    let with_data = |flags: &str| {
        let mut command = mnist(&base, &format!("--device flex --epochs 40 {flags} --data"));
        command.arg(&data);
        command
    };
    let whole = json(&mut with_data("--out whole"));
    // Three files make a checkpoint, and it is killed between them too.
    let next = || {
        let there = |epoch: usize, part| {
            let name = format!("run/checkpoint/{part}-{epoch}.bpk");
            base.at(name).exists()
        };
        let complete = |epoch| {
            ["model", "optim", "scheduler"]
                .iter()
                .all(|part| there(epoch, part))
        };
        match (1..=40).any(complete) {
            true => with_data("--out run --progress none --resume"),
            false => with_data("--out run --progress none"),
        }
    };
    for delay in [60, 90, 130, 170, 210, 260] {
        let mut child = next()
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().expect("a child");
        child.wait().expect("a child");
    }
    if !base.at("run/summary.json").exists() {
        json(&mut next());
    }
    assert_eq!(epochs(base.at("run")), epochs(base.at("whole")));
    assert_eq!(
        read_json(base.at("run/summary.json"))["test_loss"],
        whole["test_loss"]
    );
    assert_eq!(names(base.at("run")), ALL_FILES);
}

#[test]
fn a_run_killed_before_its_results_can_be_finished() {
    for flags in ["--epochs 2", "--epochs 60 --lr 0.1 --early-stopping 1"] {
        let base = folder();
        let run = base.at("run");
        let flags = format!("--device flex --out run {flags}");
        let summary = report(&base, &flags);
        for name in ALL_FILES
            .split(' ')
            .filter(|name| name.contains('.') && *name != ".lock")
        {
            fs::remove_file(run.join(name)).expect("removed");
        }
        refuse(&base, "eval --model run", "config.json is missing|--resume");
        let again = report(&base, "--resume --out run");
        assert_eq!(again, summary);
        assert_eq!(names(&run), ALL_FILES);
    }
}

/// Rows are written when they are whole. Half-written ones were rare: one epoch in fifty.
#[test]
fn validation_values_are_never_missing() {
    let base = folder();
    let data = small_data(&base);
    let mut command = mnist(&base, "--device flex --epochs 600 --out run --data");
    let mut child = command
        .arg(&data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut seen = 0;
    while child.try_wait().expect("a child").is_none() {
        let csv = fs::read_to_string(base.at("run/checkpoint/metrics.csv")).unwrap_or_default();
        if let Some(last) = csv.lines().skip(1).last() {
            let values: Vec<&str> = last.split(',').collect();
            assert!(
                values.len() == 7 && values.iter().all(|value| !value.is_empty()),
                "{last}"
            );
            assert_ne!(values[6], "0.0", "{last}");
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen} times looked");
}

#[test]
fn two_processes_cannot_share_a_folder() {
    let base = folder();
    let mut child = start(&base, "--device flex --epochs 100000 --out run");
    wait_for_epoch(base.at("run"), 1);
    for flags in [
        "--out run --epochs 1",
        "--out run --resume",
        "compare --out run --epochs 1 --seeds 1",
    ] {
        refuse(&base, flags, "another process is writing to run|--out");
    }
    child.kill().expect("a child");
    child.wait().expect("a child");
    report(&base, "--out run --epochs 1 --device flex");
}

#[test]
fn a_corrupt_checkpoint_is_named_and_the_one_before_it_taken() {
    let base = folder();
    let run = base.at("run");
    let whole = report(&base, "--device flex --epochs 5 --out whole");
    report(&base, "--device flex --epochs 3 --out run");
    let damage = |name: &str| {
        let path = run.join("checkpoint").join(name);
        let bytes = fs::read(&path).expect("read");
        fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
    };
    damage("optim-3.bpk");
    let output = mnist(&base, "--resume --epochs 5 --out run --json")
        .output()
        .expect("starts");
    let message = text(&output.stderr);
    assert!(output.status.success(), "{message}");
    assert!(
        message.contains("optim-3.bpk is damaged") && message.contains("back to epoch 2"),
        "{message}"
    );
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(summary["test_loss"], whole["test_loss"]);
    let there = names(run.join("checkpoint"));
    there
        .split(' ')
        .filter(|name| name.starts_with("model"))
        .for_each(damage);
    refuse(
        &base,
        "--resume --epochs 6 --out run",
        "model-5.bpk is damaged",
    );
}

#[test]
fn half_written_files_of_killed_runs_are_removed() {
    let base = folder();
    let run = base.at("run");
    for flags in ["--epochs 1", "--epochs 2 --resume"] {
        report(&base, &format!("--device flex --out run {flags}"));
        for name in [
            "checkpoint/model-7.bpk.4711-18.tmp",
            "model.bpk.4711-2.tmp",
            ".mnist-x1.tmp",
        ] {
            fs::write(run.join(name), "half").expect("written");
        }
        fs::write(run.join("checkpoint/mine.tmp"), "mine").expect("written");
    }
    report(&base, "--device flex --out run --epochs 1");
    assert_eq!(names(&run), ALL_FILES);
    let left = "config.json metrics.csv mine.tmp model-1.bpk optim-1.bpk scheduler-1.bpk";
    assert_eq!(names(run.join("checkpoint")), left);
}
