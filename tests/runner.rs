//! The program `case-runner`, as an outside program would call it.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

use batchnorm_tests::case::{Tensors, parse_tensors, serialize};
use batchnorm_tests::devices;
use burn::tensor::{Shape, TensorData};

fn write_case(path: &Path, settings: &str, x: TensorData) {
    let mut tensors = Tensors::new();
    tensors.insert("dy".into(), x.clone());
    tensors.insert("x".into(), x);
    let metadata = HashMap::from([("case".to_string(), settings.to_string())]);
    std::fs::write(path, serialize(&tensors, Some(metadata)).unwrap()).unwrap();
}

fn runner(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_case-runner"));
    command.args([
        folder.join("in.safetensors"),
        folder.join("out.safetensors"),
    ]);
    command
}

fn run(folder: &Path) -> Output {
    runner(folder).output().expect("case-runner")
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
fn a_residual_is_added_before_the_activation() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.safetensors");
    let vector = |values: [f32; 4]| TensorData::new(values.to_vec(), Shape::new([2, 2]));
    let tensors = Tensors::from([
        ("x".to_string(), vector([1.0, 2.0, 3.0, 6.0])),
        ("dy".to_string(), vector([1.0, 2.0, 3.0, 4.0])),
        ("residual".to_string(), vector([5.0, 0.5, -3.0, 0.25])),
    ]);
    let settings = r#"{"config": {"num_features": 2, "activation": "Relu"}, "training": true}"#;
    let metadata = HashMap::from([("case".to_string(), settings.to_string())]);
    std::fs::write(&input, serialize(&tensors, Some(metadata)).unwrap()).unwrap();
    let output = run(folder.path());
    assert!(output.status.success(), "{output:?}");

    let bytes = std::fs::read(folder.path().join("out.safetensors")).unwrap();
    let results = parse_tensors(&bytes).unwrap();
    let values = |name: &str| results[name].iter::<f32>().collect::<Vec<_>>();
    // Normalized: -1, -1, 1, 1.
    for (got, expected) in values("y").iter().zip([4.0, 0.0, 0.0, 1.25]) {
        assert!((got - expected).abs() < 1e-4, "{got} {expected}");
    }
    assert_eq!(values("dresidual"), [1.0, 0.0, 0.0, 4.0]);
}

/// CubeCL's own log says which kernels ran.
#[test]
fn wgpu_runs_the_fused_kernels() {
    if devices::by_name("wgpu").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = r#"{"config": {"num_features": 2}, "training": true, "device": "wgpu"}"#;
    write_case(&folder.path().join("in.safetensors"), settings, batch());
    let log = folder.path().join("log");
    let mut command = runner(folder.path());
    let output = command.env("CUBECL_DEBUG_LOG", &log).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let log = std::fs::read_to_string(log).unwrap();
    for kernel in ["train::Train", "gradients::Gradients"] {
        assert!(log.contains(kernel), "no {kernel} in:\n{log}");
    }
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
