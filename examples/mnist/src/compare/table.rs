//! The comparison as text, and its statistics.

use std::fmt::{Display, Formatter};

use super::{Comparison, Setup};
use crate::report::{percent, plural};

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

pub fn spread(values: &[f64]) -> Option<f64> {
    let centre = mean(values);
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A line for each group, and what is the same for all.
pub fn table(comparison: &Comparison) -> String {
    let (groups, seeds) = (&comparison.groups, comparison.seeds);
    let setting: (&str, fn(&Setup) -> String) = match comparison.by_batch_size() {
        true => ("batch size", |setup| setup.batch_size.to_string()),
        false => ("learning rate", Setup::rate),
    };
    let names = groups.iter().map(|group| group.setup.norm.to_string());
    let width = names.map(|name| name.len()).fold(5, usize::max);
    let mut text = format!(
        "{}, {} of {} images on {}; epochs until {} of the validation images are right\n\n\
         {:<13}  {:<width$}  epochs to target   test accuracy       time per step\n",
        plural(seeds, "seed"),
        plural(comparison.epochs, "epoch"),
        comparison.train_images,
        comparison.device,
        percent(comparison.target),
        setting.0,
        "norm",
    );
    let mut previous = String::new();
    for group in groups {
        let setting = setting.1(&group.setup);
        let shown = match previous == setting {
            true => "",
            false => &setting,
        };
        let reached = match group.epochs_to_target {
            Some(epochs) if group.reached == seeds => format!("{epochs:.1}"),
            Some(epochs) => format!("{epochs:.1} ({} of {seeds})", group.reached),
            None => "never".to_string(),
        };
        let spread = group.test_accuracy_spread;
        let spread = spread.map(|spread| format!(" ± {:.2}", 100.0 * spread));
        let accuracy = percent(group.test_accuracy) + &spread.unwrap_or_default();
        text += &format!(
            "{shown:<13}  {:<width$}  {reached:<17}  {accuracy:<18}  {:.0} us\n",
            group.setup.norm, group.microseconds_per_step
        );
        previous = setting;
    }
    match &comparison.settings {
        Some(settings) => text + "\n" + settings,
        None => text,
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let files = Self::files(self.by_batch_size()).join(", ");
        let folder = self.folder.display();
        writeln!(f, "{}\nwritten to {folder}: {files}", table(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_by_hand() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(median([5.0, 1.0, 3.0].into_iter()), 3.0);
        assert_eq!(spread(&[1.0, 2.0, 3.0]), Some(1.0));
        assert_eq!(spread(&[1.0]), None);
    }
}
