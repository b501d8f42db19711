//! The program `mnist` end to end, as a user meets it: files, numbers, messages, exit codes.

mod commands;
mod hostile;
mod interrupted;
mod readme;
mod statistics;
mod training;

#[cfg(target_os = "linux")]
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mnist::data::{Dataset, EMBEDDED, Images};
use serde_json::Value;

/// All files of a finished run.
const ALL_FILES: &str = ".lock checkpoint config.json confusion-matrix.png learning-curves.png \
                         metrics.csv model.bpk model.safetensors summary.json";

/// The program in `folder`, with flags separated by blanks.
fn mnist(folder: impl AsRef<Path>, flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnist"));
    command
        .args(flags.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits for the end, which must come within two minutes.
#[track_caller]
fn end(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().expect("a child");
            panic!("it hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output")
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
    let output = succeed(command.arg("--json"));
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error} in the output:\n{output}"))
}

/// What the program says as JSON.
#[track_caller]
fn report(folder: impl AsRef<Path>, flags: &str) -> Value {
    json(&mut mnist(folder, flags))
}

/// Runs a command that must fail with this status and say all of `parts`, which `|` separates,
/// without a panic.
#[track_caller]
fn fail(command: &mut Command, status: i32, parts: &str) {
    let output = command.output().expect("the program starts");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{command:?}\n{message}");
    for part in parts.split('|') {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

/// The program must fail with status 1.
#[track_caller]
fn refuse(folder: impl AsRef<Path>, flags: &str, parts: &str) {
    fail(&mut mnist(folder, flags), 1, parts);
}

/// A temporary folder.
struct Base(tempfile::TempDir);

impl Base {
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }
}

impl AsRef<Path> for Base {
    fn as_ref(&self) -> &Path {
        self.0.path()
    }
}

fn folder() -> Base {
    Base(tempfile::tempdir().expect("temporary folder"))
}

/// Names of the files in a folder, sorted, with blanks between them.
fn names(folder: impl AsRef<Path>) -> String {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        text(entry.expect("an entry").file_name().as_encoded_bytes())
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names.join(" ")
}

#[track_caller]
fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("`{key}` is not a number in {value}"))
}

fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

/// `metrics.csv` without the times.
fn epochs(run: impl AsRef<Path>) -> Vec<String> {
    let csv = fs::read_to_string(run.as_ref().join("metrics.csv")).expect("metrics.csv");
    let row = |line: &str| line.split(',').take(5).collect::<Vec<_>>().join(",");
    csv.lines().skip(1).map(row).collect()
}

/// Whether the run has a checkpoint of this epoch or of a later one: older ones are removed again.
fn has_epoch(run: impl AsRef<Path>, epoch: usize) -> bool {
    let files = fs::read_dir(run.as_ref().join("checkpoint"));
    let names = files.into_iter().flatten().flatten();
    let mut epochs = names.filter_map(|file| {
        let name = file.file_name().into_string().ok()?;
        let epoch = name.strip_prefix("scheduler-")?.strip_suffix(".bpk")?;
        epoch.parse::<usize>().ok()
    });
    epochs.any(|saved| saved >= epoch)
}

/// Waits until it has.
#[track_caller]
fn wait_for_epoch(run: impl AsRef<Path>, epoch: usize) {
    let start = Instant::now();
    while !has_epoch(&run, epoch) {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "epoch {epoch} never came"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn embedded() -> Dataset {
    Dataset::load(EMBEDDED).expect("embedded images")
}

fn write_idx(folder: &Path, split: &str, images: &Images, count: usize) {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect();
    let mut file: Vec<u8> = words(&[0x803, count as u32, 28, 28]);
    file.extend(&images.pixels[..count * 784]);
    fs::write(folder.join(format!("{split}-images-idx3-ubyte")), file).expect("written");
    let mut file: Vec<u8> = words(&[0x801, count as u32]);
    file.extend(&images.labels[..count]);
    fs::write(folder.join(format!("{split}-labels-idx1-ubyte")), file).expect("written");
}

/// A data set of few images, for devices that are slow and for files that are then damaged.
fn small_data(folder: impl AsRef<Path>) -> PathBuf {
    let data = folder.as_ref().join("few-fashion");
    fs::create_dir(&data).expect("created");
    let set = embedded();
    write_idx(&data, "train", &set.train, 320);
    write_idx(&data, "t10k", &set.test, 160);
    data
}

/// A run of two epochs that several tests only read, in the default folder, and its summary.
fn trained() -> &'static (PathBuf, Value) {
    static RUN: OnceLock<(PathBuf, Value)> = OnceLock::new();
    RUN.get_or_init(|| {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mnist-cli");
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(&base).expect("created");
        let summary = report(&base, "--epochs 2 --device flex");
        (base, summary)
    })
}
