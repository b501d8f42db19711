//! The program; all of it is in the library.

use std::process::ExitCode;

use clap::Parser;

/// Fresh memory from the system costs a page fault for every 4 KiB; mimalloc keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    quiet_display_probe();
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

/// Looking for GPUs also asks for a Wayland display, whose library prints an alarming line where
/// `XDG_RUNTIME_DIR` is not set, as on most servers. This program opens no windows.
fn quiet_display_probe() {
    const NAME: &str = "XDG_RUNTIME_DIR";
    if cfg!(target_os = "linux") && std::env::var_os(NAME).is_none() {
        // SAFETY: nothing else runs yet; `main` calls this before it starts any thread.
        unsafe { std::env::set_var(NAME, std::env::temp_dir()) };
    }
}
