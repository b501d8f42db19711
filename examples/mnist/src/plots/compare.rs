//! The comparison: course of training, final accuracy and price of a step.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{
    AMBER, Area, BLUE, DrawResult, GREEN, INK, ORANGE, PURPLE, Point, SKY, centred, curves, legend,
    numbers, picture, placed, range,
};
use crate::compare::{Comparison, Group, Method};
use crate::report::{plural, rate};

const WIDTH: u32 = 2880;
const HEAD: u32 = 180;
const CURVES: u32 = 800;
const BARS: u32 = 860;
/// Learning rates side by side; more go below.
const SIDE_BY_SIDE: usize = 4;

/// Draws `compare.png` or `batch-sizes.png`.
pub fn comparison(path: &Path, comparison: &Comparison) -> Result<()> {
    match comparison.by_batch_size() {
        true => by_batch_size(path, comparison),
        false => by_learning_rate(path, comparison),
    }
}

/// Test accuracy over batch sizes, a line for each normalization.
fn by_batch_size(path: &Path, comparison: &Comparison) -> Result<()> {
    let groups = &comparison.groups;
    let mut sizes: Vec<usize> = groups.iter().map(|group| group.batch_size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut methods: Vec<Method> = Vec::new();
    for group in groups {
        if !methods.contains(&group.norm) {
            methods.push(group.norm);
        }
    }
    let point = |group: &Group, aside: f64| {
        let at = sizes.iter().position(|size| *size == group.batch_size)?;
        let spread = 100.0 * group.test_accuracy_spread.unwrap_or(0.0);
        let (x, y) = (at as f64 + 1.0 + aside, 100.0 * group.test_accuracy);
        y.is_finite().then_some((x, y, spread))
    };
    let series: Vec<(RGBColor, Vec<Point>)> = (methods.iter().enumerate())
        .map(|(place, method)| {
            // Side by side, so that no deviation hides another.
            let aside = 0.07 * (place as f64 - (methods.len() - 1) as f64 / 2.0);
            let of = groups.iter().filter(|group| group.norm == *method);
            let mut points: Vec<Point> = of.filter_map(|group| point(group, aside)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            (look(*method).0, points)
        })
        .collect();
    let ends = series.iter().flat_map(|(_, points)| points);
    let values = range(ends.flat_map(|(_, y, spread)| [y - spread, y + spread]));
    let labels: Vec<String> = sizes.iter().map(usize::to_string).collect();
    let title = format!(
        "Test accuracy in % after {}, mean and deviation of {}",
        plural(comparison.epochs, "epoch"),
        plural(comparison.seeds, "seed")
    );
    picture(path, (WIDTH, 1400), |area| {
        let entries: Vec<_> = methods.iter().map(|method| look(*method)).collect();
        let (upper, lower) = entries.split_at(entries.len().min(3));
        legend(area, 50, upper)?;
        legend(area, 120, lower)?;
        let area = area.split_vertically(160).1;
        curves(&area, &title, ("batch size", &labels), values, &series)
    })
}

/// Courses of training, and bars below them.
fn by_learning_rate(path: &Path, comparison: &Comparison) -> Result<()> {
    let Comparison {
        groups,
        epochs,
        seeds,
        ..
    } = comparison;
    let by_rate: Vec<&[Group]> = groups
        .chunk_by(|a, b| a.learning_rate == b.learning_rate)
        .collect();
    let blocks = by_rate.len().div_ceil(SIDE_BY_SIDE) as u32;
    let spread = if *seeds > 1 {
        format!(" (± deviation of {seeds} seeds)")
    } else {
        String::new()
    };
    let accuracy = format!(
        "Test accuracy in % after {}{spread}",
        plural(*epochs, "epoch")
    );
    let time = format!("Microseconds for a training step on {}", comparison.device);
    picture(path, (WIDTH, HEAD + blocks * (CURVES + BARS)), |area| {
        let (head, mut rest) = area.split_vertically(HEAD);
        let title = format!(
            "Validation accuracy in % by epoch, mean of {}",
            plural(*seeds, "seed")
        );
        head.draw(&Text::new(title, (WIDTH as i32 / 2, 50), centred(52)))?;
        let norms = by_rate.first().into_iter().flat_map(|groups| groups.iter());
        legend(
            &head,
            130,
            &norms.map(|group| look(group.norm)).collect::<Vec<_>>(),
        )?;
        let shares = groups.iter().flat_map(|group| &group.validation_accuracy);
        let values = range(shares.map(|share| 100.0 * share));
        for by_rate in by_rate.chunks(SIDE_BY_SIDE) {
            let (upper, below) = rest.split_vertically(CURVES);
            for (panel, groups) in upper.split_evenly((1, by_rate.len())).iter().zip(by_rate) {
                let title = format!("learning rate {}", rate(groups[0].learning_rate));
                let series: Vec<_> = groups
                    .iter()
                    .map(|group| {
                        let points = (1..).zip(&group.validation_accuracy);
                        let points =
                            points.map(|(epoch, share)| (f64::from(epoch), 100.0 * share, 0.0));
                        (look(group.norm).0, points.collect())
                    })
                    .collect();
                curves(
                    panel,
                    &title,
                    ("epoch", &numbers(*epochs)),
                    values.clone(),
                    &series,
                )?;
            }
            let (lower, below) = below.split_vertically(BARS);
            let (left, right) = lower.split_horizontally(WIDTH / 2);
            bars(&left, &accuracy, by_rate, 1, |group| {
                (
                    100.0 * group.test_accuracy,
                    group.test_accuracy_spread.map(|spread| 100.0 * spread),
                )
            })?;
            bars(&right, &time, by_rate, 0, |group| {
                (group.microseconds_per_step, None)
            })?;
            rest = below;
        }
        Ok(())
    })
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

/// Bars from zero, grouped by learning rate, with the value above and the deviation as a whisker.
fn bars(
    area: &Area<'_>,
    title: &str,
    by_rate: &[&[Group]],
    digits: usize,
    value: impl Fn(&Group) -> (f64, Option<f64>),
) -> DrawResult {
    let (width, height) = area.dim_in_pixel();
    let (width, left, top, base) = (width as i32, 80, 180, height as i32 - 100);
    let all = by_rate.iter().flat_map(|groups| groups.iter());
    let highest = all
        .map(|group| value(group).0)
        .filter(|value| value.is_finite())
        .fold(1e-9, f64::max);
    let y = |value: f64| base - (f64::from(base - top) * value / highest) as i32;
    area.draw(&Text::new(title.to_string(), (width / 2, 52), centred(44)))?;
    let slot = (width - 2 * left) / by_rate.len() as i32;
    for (at, groups) in by_rate.iter().enumerate() {
        let start = left + at as i32 * slot + 30;
        let bar = (slot - 60) / groups.len() as i32;
        let below = placed(40, HPos::Center, VPos::Top);
        let middle = start + (slot - 60) / 2;
        area.draw(&Text::new(
            rate(groups[0].learning_rate),
            (middle, base + 20),
            below,
        ))?;
        for (place, group) in groups.iter().enumerate() {
            let (value, spread) = value(group);
            if !value.is_finite() {
                continue;
            }
            let x = start + place as i32 * bar;
            let corners = [(x + 6, y(value)), (x + bar - 6, base)];
            area.draw(&Rectangle::new(corners, look(group.norm).0.filled()))?;
            let (middle, head) = (x + bar / 2, y(value + spread.unwrap_or(0.0)));
            if let Some(spread) = spread {
                let whisker = [(middle, head), (middle, y(value - spread))];
                area.draw(&PathElement::new(whisker, INK.stroke_width(6)))?;
            }
            let above = placed(36, HPos::Center, VPos::Bottom);
            area.draw(&Text::new(
                format!("{value:.digits$}"),
                (middle, head - 12),
                above,
            ))?;
        }
    }
    area.draw(&PathElement::new(
        [(left, base), (width - left, base)],
        INK.stroke_width(4),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        };
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("compare.png");
        super::comparison(&path, &comparison).expect("drawn");
        image::image_dimensions(&path).expect("a PNG file")
    }

    fn group(learning_rate: f64, batch_size: usize, norm: Method) -> Group {
        Group {
            norm,
            learning_rate,
            batch_size,
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
        for (rates, height) in [(1, 920), (4, 920), (11, 90 + 3 * 830)] {
            let at = |rate: i32| {
                [Method::Batch, Method::None].map(|norm| group(0.1f64.powi(rate), 32, norm))
            };
            assert_eq!(
                drawn((0..rates).flat_map(at).collect(), None),
                (1440, height)
            );
        }
    }

    #[test]
    fn batch_sizes_are_drawn_also_where_one_has_no_result() {
        let mut groups = vec![group(0.1, 32, Method::Batch), group(0.1, 2, Method::Batch)];
        groups[0].test_accuracy = f64::NAN;
        assert_eq!(drawn(groups, Some(String::new())), (1440, 700));
    }
}
