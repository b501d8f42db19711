//! The program `case-runner`, as an outside program would call it.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

use batchnorm_tests::case::{Tensors, parse_tensors, serialize};
use burn::tensor::{Shape, TensorData};

fn write_case(path: &Path, settings: &str, x: TensorData) {
    let mut tensors = Tensors::new();
    tensors.insert("dy".into(), x.clone());
    tensors.insert("x".into(), x);
    let metadata = HashMap::from([("case".to_string(), settings.to_string())]);
    std::fs::write(path, serialize(&tensors, Some(metadata)).unwrap()).unwrap();
}

fn run(folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_case-runner"))
        .args([
            folder.join("in.safetensors"),
            folder.join("out.safetensors"),
        ])
        .output()
        .expect("case-runner")
}

fn batch() -> TensorData {
    TensorData::new(vec![1.0f32, 10.0, 3.0, 30.0], Shape::new([2, 2]))
}

#[test]
fn a_case_is_run_and_its_results_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        r#"{"config": {"num_features": 2}, "training": true, "num_batches_tracked": 41}"#;
    write_case(&folder.path().join("in.safetensors"), settings, batch());
    let output = run(folder.path());
    assert!(output.status.success(), "{output:?}");

    let bytes = std::fs::read(folder.path().join("out.safetensors")).unwrap();
    let results = parse_tensors(&bytes).unwrap();
    let names: Vec<_> = results.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "dbeta",
            "dgamma",
            "dx",
            "num_batches_tracked",
            "running_mean",
            "running_var",
            "y"
        ]
    );
    let count = &results["num_batches_tracked"];
    assert_eq!(count.iter::<i64>().collect::<Vec<_>>(), [42]);
    assert_eq!(count.shape().to_vec(), Vec::<usize>::new());
    let mean: Vec<f32> = results["running_mean"].iter().collect();
    assert_eq!(mean, [0.2, 2.0]);
}

#[test]
fn gradient_checkpointing_counts_the_batch_once() {
    let folder = tempfile::tempdir().unwrap();
    let settings = r#"{"config": {"num_features": 2}, "training": true, "checkpointing": true}"#;
    write_case(&folder.path().join("in.safetensors"), settings, batch());
    assert!(run(folder.path()).status.success());
    let bytes = std::fs::read(folder.path().join("out.safetensors")).unwrap();
    let results = parse_tensors(&bytes).unwrap();
    let count: Vec<i64> = results["num_batches_tracked"].iter().collect();
    assert_eq!(count, [1]);
}

#[test]
fn a_refused_case_exits_with_2_and_writes_nothing() {
    let cases = [
        (r#"{"config": {"num_features": 3}}"#, "Channels: "),
        (
            r#"{"config": {"num_features": 2, "epsilon": 0}}"#,
            "Epsilon: ",
        ),
        (
            r#"{"config": {"num_features": 2}, "device": "tpu"}"#,
            "Unsupported: ",
        ),
        (r#"{"config": {}}"#, "Malformed: "),
    ];
    for (settings, start) in cases {
        let folder = tempfile::tempdir().unwrap();
        write_case(&folder.path().join("in.safetensors"), settings, batch());
        let output = run(folder.path());
        assert_eq!(output.status.code(), Some(2), "{settings}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with(start), "{stderr}");
        assert!(!folder.path().join("out.safetensors").exists());
    }
}
