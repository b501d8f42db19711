//! The comparison: course of training, final accuracy and price of a step.

use std::path::Path;

use anyhow::Result;
use plotters::style::RGBColor;

use super::{AMBER, BLUE, GREEN, INK, ORANGE, PANEL, PURPLE, Panel, SKY, Series, numbers, panels};
use crate::compare::{Comparison, Group, Method};
use crate::report::plural;

/// Draws `compare.png`: the courses for each learning rate, then accuracy and time over the rates; or
/// `batch-sizes.png`: the accuracy over batch sizes.
pub fn comparison(path: &Path, comparison: &Comparison) -> Result<()> {
    let groups = &comparison.groups;
    let mut methods: Vec<Method> = Vec::new();
    for Group { setup, .. } in groups {
        if !methods.contains(&setup.norm) {
            methods.push(setup.norm);
        }
    }
    let names: Vec<(RGBColor, &str)> = methods.iter().map(|method| look(*method)).collect();
    let seeds = plural(comparison.seeds, "seed");
    let accuracy = format!("Test accuracy in %, mean and deviation of {seeds}");
    let accuracy_of = |group: &Group| {
        let spread = group.test_accuracy_spread.unwrap_or(0.0);
        (100.0 * group.test_accuracy, 100.0 * spread)
    };
    if comparison.by_batch_size() {
        let mut sizes: Vec<usize> = groups.iter().map(|group| group.setup.batch_size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let place = |group: &Group| {
            sizes
                .iter()
                .position(|size| *size == group.setup.batch_size)
        };
        let series = side_by_side(groups, &methods, place, accuracy_of);
        let labels = sizes.iter().map(usize::to_string).collect();
        let panel = Panel::new(accuracy, "batch size", labels, series);
        return panels(path, (2880, 1240), &names, &[panel]);
    }

    let by_rate: Vec<&[Group]> = groups
        .chunk_by(|a, b| a.setup.learning_rate == b.setup.learning_rate)
        .collect();
    let course = |groups: &&[Group]| {
        let series = groups.iter().map(|group| {
            let points = (1..).zip(&group.validation_accuracy);
            let points = points.map(|(epoch, share)| (f64::from(epoch), 100.0 * share, 0.0));
            (look(group.setup.norm).0, points.collect())
        });
        let title = format!(
            "Validation accuracy in %, learning rate {}",
            groups[0].setup.rate()
        );
        let labels = numbers(comparison.epochs);
        Panel::new(title, "epoch", labels, series.collect())
    };
    let mut all: Vec<Panel<'_>> = by_rate.iter().map(course).collect();
    // One scale for all courses.
    let low = all.iter().map(|panel| panel.range.start);
    let range =
        low.fold(f64::MAX, f64::min)..all.iter().map(|panel| panel.range.end).fold(0.0, f64::max);
    all.iter_mut().for_each(|panel| panel.range = range.clone());

    let rates: Vec<String> = by_rate
        .iter()
        .map(|groups| groups[0].setup.rate())
        .collect();
    let place = |group: &Group| rates.iter().position(|rate| *rate == group.setup.rate());
    let time = format!("Microseconds for a step on {}", comparison.device);
    let time_of = |group: &Group| (group.microseconds_per_step, 0.0);
    let over_rates = |title, series| Panel::new(title, "learning rate", rates.clone(), series);
    all.push(over_rates(
        accuracy,
        side_by_side(groups, &methods, place, accuracy_of),
    ));
    let mut time = over_rates(time, side_by_side(groups, &methods, place, time_of));
    time.range.start = 0.0;
    all.push(time);
    panels(path, PANEL, &names, &all)
}

/// A series for each method. The points of a place stand side by side, so that no deviation hides another.
fn side_by_side(
    groups: &[Group],
    methods: &[Method],
    place: impl Fn(&Group) -> Option<usize>,
    value: impl Fn(&Group) -> (f64, f64),
) -> Vec<Series> {
    let series = methods.iter().enumerate().map(|(at, method)| {
        let aside = 0.07 * (at as f64 - (methods.len() - 1) as f64 / 2.0);
        let of = groups.iter().filter(|group| group.setup.norm == *method);
        let mut points: Vec<_> = of
            .filter_map(|group| {
                let (value, spread) = value(group);
                Some((place(group)? as f64 + 1.0 + aside, value, spread))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (look(*method).0, points)
    });
    series.collect()
}

fn look(norm: Method) -> (RGBColor, &'static str) {
    match norm {
        Method::Batch => (BLUE, "with BN (burn-batchnorm)"),
        Method::Burn => (GREEN, "with BN (burn-nn)"),
        Method::None => (ORANGE, "without"),
        Method::Recalibrated => (SKY, "BN, recalibrated"),
        Method::Blend => (AMBER, "blend with running statistics"),
        Method::Renorm => (PURPLE, "batch renormalization"),
        Method::Ghost => (INK, "ghost batches"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Setup;

    fn drawn(groups: Vec<Group>, settings: Option<String>) -> (u32, u32) {
        let comparison = Comparison {
            program: "",
            device: "flex".into(),
            data: String::new(),
            train_images: 1,
            epochs: 2,
            target: 0.8,
            seeds: 1,
            settings,
            groups,
            runs: Vec::new(),
            folder: Default::default(),
        };
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("compare.png");
        super::comparison(&path, &comparison).expect("drawn");
        image::image_dimensions(&path).expect("a PNG file")
    }

    fn group(learning_rate: f64, batch_size: usize, norm: Method) -> Group {
        Group {
            setup: Setup {
                norm,
                learning_rate,
                batch_size,
            },
            reached: 1,
            epochs_to_target: None,
            test_accuracy: 0.5,
            test_accuracy_spread: None,
            validation_accuracy: vec![0.4, 0.5],
            microseconds_per_step: f64::NAN,
        }
    }

    #[test]
    fn many_learning_rates_get_room() {
        for (rates, height) in [(1, 600), (4, 40 + 2 * 560), (11, 40 + 5 * 560)] {
            let at = |rate: i32| {
                [Method::Batch, Method::None].map(|norm| group(0.1f64.powi(rate), 32, norm))
            };
            assert_eq!(
                drawn((0..rates).flat_map(at).collect(), None),
                (1920, height)
            );
        }
    }

    #[test]
    fn batch_sizes_are_drawn_also_where_one_has_no_result() {
        let mut groups = vec![group(0.1, 32, Method::Batch), group(0.1, 2, Method::Batch)];
        groups[0].test_accuracy = f64::NAN;
        assert_eq!(drawn(groups, Some(String::new())), (1440, 660));
    }
}
