//! The comparison: course of training, final accuracy and price of a step.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{
    Area, BLUE, DrawError, FAINT, GREEN, INK, ORANGE, brush, centred, font, key, picture, range,
};
use crate::compare::{Comparison, Group, PICTURE};
use crate::error::Result;
use crate::model::NormKind;

const WIDTH: u32 = 1440;
const TOP: u32 = 470;
const BOTTOM: u32 = 430;

/// Draws `compare.png`.
pub fn comparison(path: &Path, comparison: &Comparison) -> Result<()> {
    picture(path, PICTURE, (WIDTH, TOP + BOTTOM), |area| {
        let (top, bottom) = area.split_vertically(TOP);
        courses(&top, comparison)?;
        let (left, right) = bottom.split_horizontally(WIDTH / 2);
        bars(
            &left,
            &format!(
                "Test accuracy in % after {} epochs (± deviation of {} seeds)",
                comparison.epochs, comparison.seeds
            ),
            comparison,
            |group| {
                (
                    100.0 * group.test_accuracy,
                    group.test_accuracy_spread.map(|spread| 100.0 * spread),
                )
            },
            1,
        )?;
        bars(
            &right,
            &format!("Microseconds for a training step on {}", comparison.device),
            comparison,
            |group| (group.microseconds_per_step, None),
            0,
        )
    })
}

fn color(norm: NormKind) -> RGBColor {
    match norm {
        NormKind::Batch => BLUE,
        NormKind::Burn => GREEN,
        NormKind::None => ORANGE,
    }
}

fn name(norm: NormKind) -> &'static str {
    match norm {
        NormKind::Batch => "with BN (burn-batchnorm)",
        NormKind::Burn => "with BN (burn-nn)",
        NormKind::None => "without",
    }
}

fn rates(comparison: &Comparison) -> Vec<f64> {
    let mut rates: Vec<f64> = comparison
        .groups
        .iter()
        .map(|group| group.learning_rate)
        .collect();
    rates.dedup();
    rates
}

fn norms(comparison: &Comparison) -> Vec<NormKind> {
    let first = comparison.groups.first().map(|group| group.learning_rate);
    let same = comparison
        .groups
        .iter()
        .filter(|group| Some(group.learning_rate) == first);
    same.map(|group| group.norm).collect()
}

/// One small panel of validation accuracy by epoch for each learning rate, on one scale.
fn courses(area: &Area<'_>, comparison: &Comparison) -> std::result::Result<(), DrawError> {
    let rates = rates(comparison);
    let title = "Validation accuracy in % by epoch, mean of the seeds";
    area.draw(&Text::new(title, (WIDTH as i32 / 2, 26), centred(26)))?;
    let norms = norms(comparison);
    let mut x = WIDTH as i32 / 2 - 130 * norms.len() as i32;
    for norm in norms {
        key(area, (x, 60), color(norm), name(norm))?;
        x += 290;
    }
    let (_, panels) = area.split_vertically(76);
    let values = range(
        comparison
            .groups
            .iter()
            .flat_map(|group| group.validation_accuracy.iter().map(|share| 100.0 * share)),
    );
    for (panel, rate) in panels.split_evenly((1, rates.len())).iter().zip(&rates) {
        let last = comparison.epochs.max(1) as f64;
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("learning rate {rate}"), font(22))
            .margin(10)
            .x_label_area_size(48)
            .y_label_area_size(58)
            .build_cartesian_2d(0.5..last + 0.5, values.clone())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .x_labels(comparison.epochs.min(10))
            .x_label_formatter(&|epoch| format!("{epoch:.0}"))
            .y_labels(6)
            .y_label_formatter(&|value| format!("{}", (value * 1e3).round() / 1e3))
            .x_desc("epoch")
            .label_style(font(18))
            .axis_desc_style(font(18))
            .draw()?;
        for group in comparison
            .groups
            .iter()
            .filter(|group| group.learning_rate == *rate)
        {
            let points: Vec<(f64, f64)> = group
                .validation_accuracy
                .iter()
                .enumerate()
                .map(|(at, share)| ((at + 1) as f64, 100.0 * share))
                .collect();
            let color = color(group.norm);
            chart.draw_series(
                brush(&points)
                    .into_iter()
                    .map(|point| Circle::new(point, 1, color.filled())),
            )?;
            chart.draw_series(
                points
                    .iter()
                    .map(|point| Circle::new(*point, 4, color.filled())),
            )?;
        }
    }
    Ok(())
}

/// Bars from zero, grouped by learning rate, with the value above and the deviation as a whisker.
fn bars(
    area: &Area<'_>,
    title: &str,
    comparison: &Comparison,
    value: impl Fn(&Group) -> (f64, Option<f64>),
    digits: usize,
) -> std::result::Result<(), DrawError> {
    let (width, height) = area.dim_in_pixel();
    let (left, top, base) = (40i32, 90i32, height as i32 - 50);
    let rates = rates(comparison);
    let norms = norms(comparison);
    let highest = comparison
        .groups
        .iter()
        .map(|group| value(group).0)
        .filter(|value| value.is_finite())
        .fold(1e-9, f64::max);
    area.draw(&Text::new(
        title.to_string(),
        (width as i32 / 2, 26),
        centred(22),
    ))?;
    let slot = (width as i32 - 2 * left) / rates.len() as i32;
    let bar = (slot - 30) / norms.len() as i32;
    let y = |value: f64| base - ((base - top) as f64 * value / highest) as i32;
    for (at, rate) in rates.iter().enumerate() {
        let start = left + at as i32 * slot + 15;
        let below = font(20).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(
            rate.to_string(),
            (start + (slot - 30) / 2, base + 10),
            below,
        ))?;
        for group in comparison
            .groups
            .iter()
            .filter(|group| group.learning_rate == *rate)
        {
            let Some(place) = norms.iter().position(|norm| *norm == group.norm) else {
                continue;
            };
            let (value, spread) = value(group);
            if !value.is_finite() {
                continue;
            }
            let x = start + place as i32 * bar;
            area.draw(&Rectangle::new(
                [(x + 3, y(value)), (x + bar - 3, base)],
                color(group.norm).filled(),
            ))?;
            let mut head = y(value);
            if let Some(spread) = spread {
                let middle = x + bar / 2;
                head = y(value + spread);
                area.draw(&PathElement::new(
                    [(middle, head), (middle, y(value - spread))],
                    INK.stroke_width(3),
                ))?;
            }
            let above = font(18).pos(Pos::new(HPos::Center, VPos::Bottom));
            area.draw(&Text::new(
                format!("{value:.digits$}"),
                (x + bar / 2, head - 6),
                above,
            ))?;
        }
    }
    area.draw(&PathElement::new(
        [(left, base), (width as i32 - left, base)],
        INK.stroke_width(2),
    ))
}
