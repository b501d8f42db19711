//! `case-runner IN.safetensors OUT.safetensors` runs the layer on one case (see
//! [`batchnorm_tests::case`]), so that any outside program can check it.
//!
//! Exit status 0: the results are in OUT. 2: the case was refused, OUT is not written, and the first
//! line of stderr is the name of the error and its message. 1: a file could not be read or written.

use std::path::Path;
use std::process::ExitCode;

use batchnorm_tests::case::{Case, CaseError, serialize};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: case-runner IN.safetensors OUT.safetensors");
        return ExitCode::from(1);
    };
    let bytes = match std::fs::read(input) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{input}: {error}");
            return ExitCode::from(1);
        }
    };
    let results = match run(&bytes) {
        Ok(results) => results,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match write(Path::new(output), &results) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{output}: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(bytes: &[u8]) -> Result<Vec<u8>, CaseError> {
    serialize(&Case::parse(bytes)?.run()?, None)
}

/// Write-then-rename: a reader never finds half a file.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.persist(path)?;
    Ok(())
}
