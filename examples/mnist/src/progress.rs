//! Progress on standard error: a line per epoch, with a moving bar on a terminal, or Burn's dashboard.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use burn::train::Interrupter;
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use crossterm::{cursor, event, execute, terminal};
use indicatif::{ProgressBar, ProgressStyle};
#[cfg(unix)]
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};

/// How training shows what it does: the value of `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Progress {
    /// A line per epoch, and a moving bar on a terminal.
    Auto,
    /// Burn's dashboard, then a line per epoch.
    Dashboard,
    /// A line per epoch.
    Plain,
    /// Nothing.
    #[default]
    None,
}

impl Progress {
    /// Refuses a dashboard that has nowhere to be, or would stand in the middle of JSON.
    pub fn check(self, json: bool) -> Result<()> {
        let possible = !json && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
        ensure!(
            self != Self::Dashboard || possible,
            "--progress dashboard needs a terminal and does not go with --json"
        );
        Ok(())
    }

    /// The bar, hidden where it is not wanted or standard error is no terminal.
    pub fn bar(self) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len}");
        let bar = if self == Self::Auto {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// The renderer for a run that starts after `done` epochs.
    pub fn renderer(
        self,
        bar: &ProgressBar,
        interrupter: &Interrupter,
        done: usize,
    ) -> Box<dyn MetricsRenderer> {
        if self != Self::Dashboard {
            return Box::new(Bar {
                bar: bar.clone(),
                epoch: 1,
                epochs: 0,
            });
        }
        let dashboard =
            TuiMetricsRendererWrapper::new(interrupter.clone(), (done > 0).then_some(done));
        let start = Instant::now();
        while !keep_ctrl_c() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Box::new(dashboard)
    }
}

/// The dashboard's thread switches the terminal to raw mode, in which Ctrl-C is a key, and knows no
/// such key. Makes it a signal again; false until the terminal is in raw mode.
fn keep_ctrl_c() -> bool {
    if !terminal::is_raw_mode_enabled().unwrap_or(true) {
        return false;
    }
    #[cfg(unix)]
    if let Ok(mut mode) = tcgetattr(std::io::stdin()) {
        mode.local_modes |= LocalModes::ISIG;
        // Ctrl-Z and Ctrl-\ would leave the terminal as it is.
        for key in [SpecialCodeIndex::VSUSP, SpecialCodeIndex::VQUIT] {
            mode.special_codes[key] = libc::_POSIX_VDISABLE;
        }
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &mode);
    }
    true
}

/// Gives the terminal back, if the dashboard has it, before the program ends without unwinding.
pub(crate) fn restore_terminal() {
    if terminal::is_raw_mode_enabled().unwrap_or(false) {
        let _ = terminal::disable_raw_mode();
        let _ = execute!(
            std::io::stdout(),
            event::DisableMouseCapture,
            terminal::LeaveAlternateScreen,
            cursor::Show
        );
    }
}

/// The dashboard's "kill" prints a line of its own below the restored screen, where ours belongs.
pub(crate) fn clear_below() {
    let _ = execute!(
        std::io::stdout(),
        terminal::Clear(terminal::ClearType::FromCursorDown)
    );
}

/// The moving bar. The lines are printed by the history.
struct Bar {
    bar: ProgressBar,
    epoch: usize,
    epochs: usize,
}

impl TrainingProgressLogger for Bar {
    fn start(&mut self, epochs: usize, first: usize, _: Option<usize>, _: Option<&str>) {
        (self.epochs, self.epoch) = (epochs, first);
    }

    fn start_split(&mut self, split: &str, items: usize) {
        self.bar.set_length(items as u64);
        self.bar.set_position(0);
        self.bar
            .set_prefix(format!("epoch {}/{} {split}", self.epoch, self.epochs));
    }

    fn update_split(&mut self, items: usize) {
        self.bar.set_position(items as u64);
    }

    fn end_split(&mut self) {}

    fn update_epoch(&mut self, epoch: usize) {
        self.epoch = epoch + 1;
    }

    fn end(&mut self) {}

    fn log_event_training(&mut self, _: String) {}
}

impl MetricsRendererTraining for Bar {
    fn update_train(&mut self, _: MetricState) {}

    fn update_valid(&mut self, _: MetricState) {}
}

// The test is run by this program's own code, not by Burn's evaluator.
impl EvaluationProgressLogger for Bar {
    fn start_global_progress(&mut self, _: usize) {}

    fn start_test(&mut self, _: &str, _: usize) {}

    fn update_test_progress(&mut self, _: usize) {}

    fn end_test(&mut self) {}

    fn end_global_progress(&mut self) {}

    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRendererEvaluation for Bar {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl MetricsRenderer for Bar {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, _: MetricDefinition) {}
}
