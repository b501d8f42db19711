//! The program; all of it is in the library.

use std::process::ExitCode;

use clap::Parser;

/// Fresh memory from the system costs a page fault for every 4 KiB; mimalloc keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // SAFETY: nothing else runs yet.
    unsafe { mnist::device::quiet_display_probe() };
    match mnist::execute(mnist::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            mnist::note(&format!("error: {error:#}"));
            // 130 after Ctrl-C as shells have it.
            ExitCode::from(if error.is::<mnist::Interrupted>() {
                130
            } else {
                1
            })
        }
    }
}
