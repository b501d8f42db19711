//! The program; all of it is in the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Fresh memory from the system costs a page fault for every 4 KiB; mimalloc keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // SAFETY: nothing else runs yet.
    unsafe { mnist::device::quiet_display_probe() };
    let printed = resnet::execute(&resnet::cli::Cli::parse()).and_then(|text| {
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            // `classify | head -1` closes the pipe early, which is nobody's fault.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written?),
        }
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            mnist::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
