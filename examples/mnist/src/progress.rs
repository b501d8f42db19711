//! Progress without a dashboard: a moving line on a terminal, one line per epoch elsewhere.
//!
//! It goes to standard error, so that standard output holds results only.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Arc;

use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use burn::train::{Interrupter, LearnerSummary};
use indicatif::{ProgressBar, ProgressStyle};

use crate::data::EpochClock;
use crate::metrics::{ACCURACY, LOSS};

/// How training shows what it does: the value of `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Progress {
    /// Burn's dashboard on a terminal, else plain lines.
    #[default]
    Auto,
    /// Burn's dashboard.
    Dashboard,
    /// A line per epoch.
    Plain,
    /// Nothing.
    None,
}

impl Progress {
    /// The renderer for a run that starts after epoch `resumed`.
    pub fn renderer(
        self,
        interrupter: &Interrupter,
        resumed: Option<usize>,
        clock: &EpochClock,
    ) -> Box<dyn MetricsRenderer> {
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        match self {
            Self::Dashboard => {
                Box::new(TuiMetricsRendererWrapper::new(interrupter.clone(), resumed))
            }
            Self::Auto if terminal => {
                Box::new(TuiMetricsRendererWrapper::new(interrupter.clone(), resumed))
            }
            Self::Auto | Self::Plain => Box::new(Lines::new(clock.clone(), true)),
            Self::None => Box::new(Lines::new(clock.clone(), false)),
        }
    }
}

/// Plain progress.
struct Lines {
    shown: bool,
    bar: ProgressBar,
    clock: EpochClock,
    names: HashMap<MetricId, Arc<String>>,
    epoch: usize,
    epochs: usize,
    epoch_values: [Option<f64>; 4],
}

/// Places in [`Lines::epoch_values`].
const TRAIN: usize = 0;
const VALID: usize = 2;

impl Lines {
    fn new(clock: EpochClock, shown: bool) -> Self {
        let style = "{prefix} {bar:30} {pos}/{len} {msg}";
        let bar = match shown {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self {
            shown,
            bar,
            clock,
            names: HashMap::new(),
            epoch: 1,
            epochs: 0,
            epoch_values: [None; 4],
        }
    }

    fn remember(&mut self, split: usize, state: MetricState) {
        if let MetricState::Numeric(entry, Some(NumericEntry::Final(value))) = state
            && let Some(name) = self.names.get(&entry.metric_id)
        {
            let place = match name.as_str() {
                LOSS => split,
                ACCURACY => split + 1,
                _ => return,
            };
            self.epoch_values[place] = value.is_finite().then_some(value);
        }
    }

    fn line(&self) -> String {
        let part = |name: &str, at: usize| match (self.epoch_values[at], self.epoch_values[at + 1])
        {
            (Some(loss), Some(accuracy)) => {
                format!("  {name} loss {loss:.4} accuracy {accuracy:5.2}%")
            }
            _ => String::new(),
        };
        let rate = self.clock.times().last().map_or(0.0, |time| time.rate());
        let width = self.epochs.to_string().len();
        format!(
            "epoch {:>width$}/{}{}{}  {:.0} images/s",
            self.epoch,
            self.epochs,
            part("train", TRAIN),
            part("valid", VALID),
            rate
        )
    }
}

impl MetricsRendererTraining for Lines {
    fn update_train(&mut self, state: MetricState) {
        self.remember(TRAIN, state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.remember(VALID, state);
    }

    fn on_train_end(
        &mut self,
        _: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn core::error::Error>> {
        self.bar.finish_and_clear();
        Ok(())
    }
}

impl TrainingProgressLogger for Lines {
    fn start(&mut self, epochs: usize, first: usize, _: Option<usize>, _: Option<&str>) {
        self.epochs = epochs;
        self.epoch = first;
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
        self.epoch = epoch;
        if self.shown {
            let line = self.line();
            self.bar.suspend(|| eprintln!("{line}"));
        }
        self.epoch = epoch + 1;
        self.epoch_values = [None; 4];
    }

    fn end(&mut self) {}

    fn log_event_training(&mut self, _: String) {}
}

// The test is run by this program's own code, not by Burn's evaluator.
impl EvaluationProgressLogger for Lines {
    fn start_global_progress(&mut self, _: usize) {}

    fn start_test(&mut self, _: &str, _: usize) {}

    fn update_test_progress(&mut self, _: usize) {}

    fn end_test(&mut self) {}

    fn end_global_progress(&mut self) {}

    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRendererEvaluation for Lines {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl MetricsRenderer for Lines {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }
}
