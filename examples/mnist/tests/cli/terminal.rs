//! The program on a terminal: a pseudo-terminal whose keys we press and whose screen we read.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::ptr::null_mut;

use crate::*;

/// Escape sequences of the alternate screen and of mouse reports.
const ENTERS: &str = "\x1b[?1049h";
const LEAVES: &str = "\x1b[?1049l";
const MOUSE_OFF: &str = "\x1b[?1000l";

struct Terminal {
    master: File,
    /// Kept open, so that the terminal and its settings outlive the program.
    slave: OwnedFd,
    child: Child,
    screen: String,
}

impl Terminal {
    fn start(folder: impl AsRef<Path>, flags: &str) -> Self {
        let (mut master, mut slave) = (0, 0);
        let size = libc::winsize {
            ws_row: 40,
            ws_col: 120,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the pointers are to live values; name and settings are not asked for. On success
        // both descriptors are new and ours.
        let (master, slave) = unsafe {
            let opened = libc::openpty(&mut master, &mut slave, null_mut(), null_mut(), &size);
            assert_eq!(opened, 0, "a pseudo-terminal");
            (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
        };
        let stream = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut command = mnist(folder, flags);
        command
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .env("TERM", "xterm");
        // SAFETY: both calls are async-signal-safe; descriptor 0 is the terminal then.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().expect("the program starts");
        // SAFETY: a descriptor of ours.
        unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        Self {
            master,
            slave,
            child,
            screen: String::new(),
        }
    }

    fn read(&mut self) {
        let mut bytes = [0; 65536];
        while let Ok(count @ 1..) = self.master.read(&mut bytes) {
            self.screen += &text(&bytes[..count]);
        }
        std::thread::sleep(Duration::from_millis(5));
    }

    /// Reads until `part` was on the screen.
    #[track_caller]
    fn wait_for(&mut self, part: &str) {
        let start = Instant::now();
        while !self.screen.contains(part) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "`{part}` never came: {}",
                self.screen
            );
            self.read();
        }
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("keys");
    }

    /// Reads until the program ends; its status and all that was on the screen.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        let status = loop {
            self.read();
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if start.elapsed() > Duration::from_secs(60) {
                self.child.kill().expect("a child");
                panic!("it does not stop: {}", self.screen);
            }
        };
        self.read();
        // SAFETY: a descriptor of ours, and a struct of integers that lives through the call.
        let usable = unsafe {
            let mut mode: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), &mut mode), 0);
            mode.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG)
        };
        assert_eq!(
            usable,
            libc::ICANON | libc::ECHO | libc::ISIG,
            "the terminal is not as it was"
        );
        (status.code(), std::mem::take(&mut self.screen))
    }
}

impl Drop for Terminal {
    /// A test that fails leaves nothing running.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A dashboard that has shown an epoch.
fn dashboard(folder: &Base) -> Terminal {
    let mut terminal = Terminal::start(
        folder,
        "--device flex --epochs 100000 --out run --progress dashboard",
    );
    terminal.wait_for(ENTERS);
    let start = Instant::now();
    while !has_epoch(folder.at("run"), 2) {
        assert!(start.elapsed() < Duration::from_secs(60), "no epoch");
        terminal.read();
    }
    terminal
}

#[track_caller]
fn assert_left((status, screen): (Option<i32>, String)) -> String {
    assert_eq!(status, Some(130), "{screen}");
    let (_, after) = screen
        .rsplit_once(LEAVES)
        .expect("it leaves the alternate screen");
    assert!(screen.contains(MOUSE_OFF), "the mouse is still captured");
    after.to_string()
}

#[test]
fn ctrl_c_stops_the_dashboard() {
    let base = folder();
    let mut terminal = dashboard(&base);
    terminal.press("\x03");
    let after = assert_left(terminal.end());
    // The epochs stay on the screen.
    assert!(after.contains("epoch      2/100000  train loss"), "{after}");
    assert!(after.contains("--resume --out run"), "{after}");
    let done = epochs(base.at("run/checkpoint")).len();
    assert!(done >= 2);
    report(&base, &format!("--resume --epochs {} --out run", done + 1));
}

#[test]
fn termination_gives_the_terminal_back() {
    for times in [1, 2] {
        let base = folder();
        let terminal = dashboard(&base);
        for _ in 0..times {
            succeed(Command::new("kill").args(["-TERM", &terminal.child.id().to_string()]));
        }
        assert_left(terminal.end());
    }
}

#[test]
fn killing_in_the_dashboard_leaves_one_clean_message() {
    let base = folder();
    let mut terminal = dashboard(&base);
    terminal.press("q");
    terminal.wait_for("Kill the program");
    terminal.press("k");
    let after = assert_left(terminal.end());
    let (_, after) = after.rsplit_once("\x1b[J").expect("cleared");
    assert_eq!(
        after.trim(),
        "error: stopped; --resume continues after the last complete epoch"
    );
}

#[test]
fn a_finished_dashboard_leaves_epochs_and_results() {
    let base = folder();
    let terminal = Terminal::start(
        &base,
        "--device flex --epochs 2 --out run --progress dashboard",
    );
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(0), "{screen}");
    let (_, after) = screen
        .rsplit_once(LEAVES)
        .expect("it leaves the alternate screen");
    for part in [
        "epoch 1/2  train loss",
        "epoch 2/2  train loss",
        "Ankle boot",
        "written to run",
    ] {
        assert!(after.contains(part), "`{part}` is not in {after}");
    }
}

#[test]
fn the_plain_bar_is_cleared_on_ctrl_c() {
    let base = folder();
    let mut terminal = Terminal::start(&base, "--device flex --epochs 100000 --out run");
    terminal.wait_for("epoch      3/100000  train loss");
    terminal.press("\x03");
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(130), "{screen}");
    assert!(
        !screen.contains(ENTERS),
        "the dashboard is only shown if asked for"
    );
    let (_, last) = screen.rsplit_once("\x1b[2K").expect("the bar is cleared");
    assert!(
        !last.contains('█') && last.contains("error: interrupted"),
        "{last}"
    );
    // JSON on standard output has no dashboard before it.
    let terminal = Terminal::start(&base, "--progress dashboard --json --out other");
    let (status, screen) = terminal.end();
    assert_eq!(status, Some(1), "{screen}");
    assert!(
        screen.contains("does not go with --json") && !screen.contains('\x1b'),
        "{screen}"
    );
}

#[test]
fn recalibration_shows_a_bar_and_clears_it() {
    let base = folder();
    report(&base, "--epochs 1 --input 100 --device flex --out run");
    let (status, screen) = Terminal::start(&base, "recalibrate --model run").end();
    assert_eq!(status, Some(0), "{screen}");
    let (bar, result) = screen.split_once("100 -> Dense(50)").expect("a result");
    assert!(
        bar.contains("recalibrate") && bar.contains("/6300"),
        "{bar}"
    );
    assert!(result.contains("test after"), "{result}");
}
