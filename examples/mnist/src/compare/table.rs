//! The comparison as text, and its statistics.

use std::path::Path;

use super::{Comparison, Group};
use crate::report::{percent, plural, rate};

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
    let Comparison {
        train_images,
        device,
        groups,
        settings,
        ..
    } = comparison;
    let by_batch_size = comparison.by_batch_size();
    let setting = |group: &Group| match by_batch_size {
        true => group.batch_size.to_string(),
        false => rate(group.learning_rate),
    };
    let names = groups.iter().map(|group| group.norm.to_string().len());
    let width = names.max().unwrap_or(0).max(5);
    let mut text = format!(
        "{}, {} of {train_images} images on {device}; epochs until {} of the validation images are right\n\n\
         {:<13}  {:<width$}  epochs to target   test accuracy       time per step\n",
        plural(comparison.seeds, "seed"),
        plural(comparison.epochs, "epoch"),
        percent(comparison.target),
        match by_batch_size {
            true => "batch size",
            false => "learning rate",
        },
        "norm",
    );
    let mut previous = String::new();
    for group in groups {
        let setting = setting(group);
        let shown = match previous == setting {
            true => "",
            false => &setting,
        };
        let reached = match group.epochs_to_target {
            Some(epochs) if group.reached == comparison.seeds => format!("{epochs:.1}"),
            Some(epochs) => format!("{epochs:.1} ({} of {})", group.reached, comparison.seeds),
            None => "never".to_string(),
        };
        let spread = group
            .test_accuracy_spread
            .map(|spread| format!(" ± {:.2}", 100.0 * spread));
        let accuracy = percent(group.test_accuracy) + &spread.unwrap_or_default();
        text += &format!(
            "{shown:<13}  {:<width$}  {reached:<17}  {accuracy:<18}  {:.0} us\n",
            group.norm, group.microseconds_per_step
        );
        previous = setting;
    }
    match settings {
        Some(settings) => text + "\n" + settings,
        None => text,
    }
}

/// The comparison for people.
pub fn text(comparison: &Comparison, out: &Path) -> String {
    format!(
        "{}\nwritten to {}: {}\n",
        table(comparison),
        out.display(),
        Comparison::files(comparison.by_batch_size()).join(", ")
    )
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
