//! Results of PyTorch, Keras and Flax, made by `goldens/generate.py`: every file on every device.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use batchnorm_tests::case::{Case, CaseError};
use batchnorm_tests::devices;

use crate::common::{difference, tolerance};

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

fn cases() -> Vec<(String, Case)> {
    let mut cases: Vec<_> = std::fs::read_dir(folder())
        .expect("the folder of the goldens")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .filter(|path| {
            // Of these there is no pass to run.
            let others = ["parity", "option_pytorch_update_bn"];
            path.file_stem()
                .is_some_and(|stem| others.iter().all(|other| stem != *other))
        })
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let bytes = std::fs::read(&path).expect("a readable golden");
            let case = Case::parse(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, case)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

/// Runs every golden on one device and returns how many it could.
fn check(device: &str) -> usize {
    let mut run = 0;
    let mut failures = Vec::new();
    for (name, mut case) in cases() {
        case.settings.device = device.into();
        let results = match case.run() {
            Ok(results) => results,
            // f64 on most GPUs, the half types on ndarray.
            Err(CaseError::Unsupported(_)) => continue,
            Err(error) => panic!("{name} on {device}: {error}"),
        };
        let expected: BTreeSet<&str> = case
            .tensors
            .keys()
            .filter_map(|name| name.strip_prefix("expect."))
            .collect();
        // Keras and Flax do not count batches.
        let got: BTreeSet<&str> = results
            .keys()
            .map(String::as_str)
            .filter(|name| *name != "num_batches_tracked" || expected.contains(name))
            .collect();
        assert_eq!(got, expected, "{name} on {device}: results");

        for result in expected {
            let got = &results[result];
            let want = &case.tensors[&format!("expect.{result}")];
            assert_eq!(got.dtype(), want.dtype(), "{name} on {device}: {result}");
            let (forward, gradient) = tolerance(got.dtype());
            let tolerance = match result.starts_with('d') {
                true => gradient,
                false => forward,
            };
            let what = format!("{name} on {device}: {result}");
            failures.extend(difference(&what, got, want, tolerance));
        }
        run += 1;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    run
}

#[test]
fn flex_agrees_with_every_golden() {
    assert_eq!(check("flex"), cases().len());
    assert!(cases().len() >= 40, "goldens are missing");
}

#[test]
fn ndarray_agrees_with_every_golden_but_those_of_half_types() {
    let half = cases()
        .iter()
        .filter(|(name, _)| name.starts_with("half_"))
        .count();
    assert!(half > 0);
    assert_eq!(check("ndarray"), cases().len() - half);
}

#[test]
fn wgpu_agrees_with_every_golden_of_a_type_it_has() {
    if devices::by_name("wgpu").is_some() {
        let f32s = cases()
            .iter()
            .filter(|(_, case)| case.tensors["x"].dtype() == burn::tensor::DType::F32)
            .count();
        assert!(check("wgpu") >= f32s);
    }
}
