//! The pictures: learning curves, confusion matrix, comparisons, health.
//!
//! They are drawn at twice their size and reduced, which smooths every edge; all sizes below are
//! those of the large picture.

mod compare;
mod confusion;
mod health;

pub use compare::comparison;
pub use confusion::confusion_matrix;
pub use health::health;

use std::ops::Range;
use std::path::Path;
use std::sync::Once;

use anyhow::{Context, Result};
use image::{ImageFormat, RgbImage, imageops};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::folder::write_atomically;
use crate::history::{EpochRow, History};

/// A palette that stays apart for colour-blind readers (Okabe and Ito 2008).
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const SKY: RGBColor = RGBColor(86, 180, 233);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const AMBER: RGBColor = RGBColor(230, 159, 0);
const INK: RGBColor = RGBColor(45, 45, 45);
const FAINT: RGBColor = RGBColor(225, 225, 225);

const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;
type DrawResult = std::result::Result<
    (),
    DrawingAreaErrorKind<<BitMapBackend<'static> as DrawingBackend>::ErrorType>,
>;

/// Draws into memory and writes the PNG whole.
fn picture(
    path: &Path,
    (width, height): (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> DrawResult,
) -> Result<()> {
    static REGISTER: Once = Once::new();
    // The font is part of the program: a machine without fonts draws the same picture.
    REGISTER.call_once(|| {
        let font = include_bytes!("../assets/DejaVuSans-subset.ttf");
        let _ = register_font(FONT, FontStyle::Normal, font);
    });
    let failed = || format!("cannot draw {}", path.display());
    let mut pixels = vec![255u8; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        draw(&area)
            .and_then(|()| area.present())
            .with_context(failed)?;
    }
    let image = RgbImage::from_raw(width, height, pixels).with_context(failed)?;
    let mut png = std::io::Cursor::new(Vec::new());
    let small = imageops::thumbnail(&image, width / 2, height / 2);
    small
        .write_to(&mut png, ImageFormat::Png)
        .with_context(failed)?;
    write_atomically(path, png.get_ref())
}

fn font(size: u32) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).color(&INK)
}

fn placed(size: u32, horizontally: HPos, vertically: VPos) -> TextStyle<'static> {
    font(size).pos(Pos::new(horizontally, vertically))
}

fn centred(size: u32) -> TextStyle<'static> {
    placed(size, HPos::Center, VPos::Center)
}

/// A line of dashes and names, centred.
fn legend(area: &Area<'_>, y: i32, entries: &[(RGBColor, &str)]) -> DrawResult {
    let style = placed(40, HPos::Left, VPos::Center);
    let mut starts = vec![0];
    for (_, name) in entries {
        starts
            .push(starts[starts.len() - 1] + area.estimate_text_size(name, &style)?.0 as i32 + 130);
    }
    let left = (area.dim_in_pixel().0 as i32 - starts[entries.len()]) / 2 + 30;
    for ((color, name), start) in entries.iter().zip(starts) {
        let x = left + start;
        area.draw(&Rectangle::new(
            [(x, y - 4), (x + 52, y + 4)],
            color.filled(),
        ))?;
        area.draw(&Text::new(name.to_string(), (x + 68, y), style.clone()))?;
    }
    Ok(())
}

/// A point, and the deviation of its value.
type Point = (f64, f64, f64);

/// Points and lines between them.
type Series = (RGBColor, Vec<Point>);

/// A chart of series over 1, 2, .. with a label for each.
struct Panel<'a> {
    title: String,
    axis: &'a str,
    labels: Vec<String>,
    range: Range<f64>,
    series: Vec<Series>,
}

impl<'a> Panel<'a> {
    /// Values that are no numbers leave gaps.
    fn new(title: String, axis: &'a str, labels: Vec<String>, mut series: Vec<Series>) -> Self {
        for (_, points) in &mut series {
            points.retain(|(_, value, _)| value.is_finite());
        }
        let points = series.iter().flat_map(|(_, points)| points);
        Self {
            range: range(points.flat_map(|(_, y, spread)| [y - spread, y + spread])),
            title,
            axis,
            labels,
            series,
        }
    }

    fn draw(&self, area: &Area<'_>) -> DrawResult {
        let count = self.labels.len();
        let label = |x: &f64| match x.fract().abs() < 1e-6 {
            true => self.labels.get((*x as usize).wrapping_sub(1)),
            false => None,
        };
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, font(48))
            .margin(28)
            .x_label_area_size(104)
            .y_label_area_size(130)
            .build_cartesian_2d(0.5..count.max(1) as f64 + 0.5, self.range.clone())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT.stroke_width(2))
            .axis_style(INK.stroke_width(2))
            .x_labels(count.min(10))
            .x_label_formatter(&|x| label(x).cloned().unwrap_or_default())
            .y_labels(8)
            .y_label_formatter(&|value| format!("{}", (value * 1e3).round() / 1e3))
            .x_desc(self.axis)
            .label_style(font(38))
            .axis_desc_style(font(38))
            .draw()?;
        for (color, points) in &self.series {
            let line = points.iter().map(|(x, y, _)| (*x, *y));
            chart.draw_series(LineSeries::new(line.clone(), color.stroke_width(5)))?;
            // Of many the points would hide the line.
            let size = if points.len() > 40 { 3 } else { 9 };
            chart.draw_series(line.map(|point| Circle::new(point, size, color.filled())))?;
            let spread = points.iter().filter(|(_, _, spread)| *spread > 0.0);
            chart.draw_series(spread.map(|(x, y, spread)| {
                PathElement::new([(*x, y - spread), (*x, y + spread)], color.stroke_width(4))
            }))?;
        }
        Ok(())
    }
}

/// Width and height of a panel.
const PANEL: (u32, u32) = (1280, 1120);
/// Panels side by side; more go below.
const ACROSS: usize = 3;

/// Draws panels of this size below the names of the colours.
fn panels(
    path: &Path,
    (width, height): (u32, u32),
    names: &[(RGBColor, &str)],
    panels: &[Panel<'_>],
) -> Result<()> {
    let (across, rows) = (panels.len().min(ACROSS), panels.len().div_ceil(ACROSS));
    let width = width * across as u32;
    let lines = names.chunks(width as usize / 720);
    let head = 80 * lines.len() as u32;
    picture(path, (width, head + height * rows as u32), |area| {
        for (line, names) in lines.enumerate() {
            legend(area, 50 + 80 * line as i32, names)?;
        }
        let cells = area.split_vertically(head).1.split_evenly((rows, across));
        let mut drawn = cells.iter().zip(panels);
        drawn.try_for_each(|(cell, panel)| panel.draw(cell))
    })
}

/// Labels for 1, 2, .. up to `count`.
fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

/// Draws `learning-curves.png`; `test` is the final test loss and accuracy.
pub fn learning_curves(path: &Path, history: &History, test: (f64, f64)) -> Result<()> {
    let rows = &history.rows;
    let series = |color, value: fn(&EpochRow) -> Option<f64>| {
        let point = |row: &EpochRow| Some((row.epoch as f64, value(row)?, 0.0));
        (color, rows.iter().filter_map(point).collect())
    };
    let panel = |title, train, valid| {
        let series = vec![series(BLUE, train), series(ORANGE, valid)];
        Panel::new(title, "epoch", numbers(rows.len()), series)
    };
    let loss = panel(
        format!("Loss (test {:.4})", test.0),
        |row| Some(row.train_loss),
        |row| row.valid_loss,
    );
    let accuracy = panel(
        format!("Accuracy in % (test {:.2}%)", 100.0 * test.1),
        |row| Some(100.0 * row.train_accuracy),
        |row| row.valid_accuracy.map(|share| 100.0 * share),
    );
    let validated = rows.iter().any(|row| row.valid_loss.is_some());
    let names = [(BLUE, "train"), (ORANGE, "validation")];
    let names = &names[..1 + usize::from(validated)];
    panels(path, PANEL, names, &[loss, accuracy])
}

/// A range that holds all values with some air around them.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let finite = values.filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return 0.0..1.0;
    }
    let air = (0.08 * (high - low)).max(1e-3);
    low - air..high + air
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(rows: Vec<EpochRow>) -> RgbImage {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("curves.png");
        learning_curves(&path, &History { rows }, (0.5, 0.8)).expect("drawn");
        image::open(&path).expect("a PNG file").to_rgb8()
    }

    fn row(epoch: usize, train_loss: f64, valid: Option<f64>) -> EpochRow {
        EpochRow {
            epoch,
            train_loss,
            valid_loss: valid,
            valid_accuracy: valid,
            ..EpochRow::default()
        }
    }

    #[test]
    fn draws_with_and_without_validation_and_for_one_epoch() {
        let nan = row(2, f64::NAN, Some(f64::NAN));
        for (rows, orange) in [
            (vec![row(1, 1.0, Some(0.5))], true),
            (vec![row(1, 1.0, None), row(2, 0.5, None)], false),
            (vec![row(1, 1.0, Some(0.5)), nan], true),
        ] {
            let image = drawn(rows);
            let count = |color: [u8; 3]| image.pixels().filter(|pixel| pixel.0 == color).count();
            assert_eq!(image.dimensions(), (1280, 600));
            assert!(count([0, 114, 178]) > 50);
            assert_eq!(count([213, 94, 0]) > 50, orange);
        }
    }

    #[test]
    fn steep_lines_have_no_gaps() {
        // Up and down at every one of 100 epochs, in the left panel.
        let rows = (1..=100).map(|epoch| row(epoch, (epoch % 2) as f64, None));
        let image = drawn(rows.collect());
        let inked = |y: u32| {
            (80..630)
                .filter(|x| image.get_pixel(*x, y).0[0] < 150)
                .count()
        };
        for y in 150..480 {
            // Each of the 99 lines crosses each row.
            assert!(inked(y) >= 99, "row {y}: {} pixels", inked(y));
        }
    }

    #[test]
    fn ranges_hold_their_values_and_survive_odd_ones() {
        let both = range([1.0, 3.0, f64::NAN].into_iter());
        assert!(both.start < 1.0 && both.end > 3.0 && both.end < 4.0);
        assert!(range([2.0].into_iter()).contains(&2.0));
        assert_eq!(range(std::iter::empty()), 0.0..1.0);
    }
}
