//! The pictures: learning curves, confusion matrix, comparison.

mod compare;
mod confusion;
mod curves;

pub use compare::comparison;
pub use confusion::confusion_matrix;
pub use curves::learning_curves;

use std::path::Path;
use std::sync::Once;

use image::{ImageFormat, RgbImage};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::artifacts::write_atomically;
use crate::error::{Error, Result};

/// A palette that stays apart for colour-blind readers (Okabe and Ito 2008).
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const INK: RGBColor = RGBColor(45, 45, 45);
const FAINT: RGBColor = RGBColor(225, 225, 225);

const FONT: &str = "sans-serif";
static REGISTER: Once = Once::new();

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

/// Draws into memory and writes the PNG whole.
fn picture<E: std::fmt::Display>(
    path: &Path,
    name: &'static str,
    (width, height): (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> std::result::Result<(), E>,
) -> Result<()> {
    // The font is part of the program: a machine without fonts draws the same picture.
    REGISTER.call_once(|| {
        let font = include_bytes!("../../assets/DejaVuSans-subset.ttf");
        let _ = register_font(FONT, FontStyle::Normal, font);
    });
    let failed = |reason: String| Error::Plot { name, reason };
    let mut pixels = vec![255u8; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        draw(&area).map_err(|error| failed(error.to_string()))?;
        area.present().map_err(|error| failed(error.to_string()))?;
    }
    let image = RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| failed("the buffer has another size".to_string()))?;
    let mut png = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|error| failed(error.to_string()))?;
    write_atomically(path, png.get_ref())
}

fn font(size: u32) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).color(&INK)
}

fn centred(size: u32) -> TextStyle<'static> {
    font(size).pos(Pos::new(HPos::Center, VPos::Center))
}

/// A legend line: a dash of colour and a name.
fn key(
    area: &Area<'_>,
    at: (i32, i32),
    color: RGBColor,
    name: &str,
) -> std::result::Result<(), DrawError> {
    let (x, y) = at;
    area.draw(&Rectangle::new(
        [(x, y - 2), (x + 26, y + 2)],
        color.filled(),
    ))?;
    area.draw(&Text::new(
        name.to_string(),
        (x + 34, y),
        font(20).pos(Pos::new(HPos::Left, VPos::Center)),
    ))
}

/// Points along the lines between `points`, for a round brush: the library's own lines get thinner
/// the steeper they are.
fn brush(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let steps = (2000 / points.len().max(1)).clamp(1, 400);
    let between = points.windows(2).flat_map(|pair| {
        let (from, to) = (pair[0], pair[1]);
        (0..steps).map(move |step| {
            let part = step as f64 / steps as f64;
            (
                from.0 + part * (to.0 - from.0),
                from.1 + part * (to.1 - from.1),
            )
        })
    });
    between.chain(points.last().copied()).collect()
}

type DrawError = DrawingAreaErrorKind<<BitMapBackend<'static> as DrawingBackend>::ErrorType>;

/// A range that holds all values with some air around them.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|value| value.is_finite()) {
        low = low.min(value);
        high = high.max(value);
    }
    if low > high {
        return 0.0..1.0;
    }
    let air = (0.08 * (high - low)).max(1e-3);
    low - air..high + air
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brush_goes_through_every_point() {
        let points = [(1.0, 5.0), (2.0, 1.0), (3.0, 1.0)];
        let path = brush(&points);
        assert!(points.iter().all(|point| path.contains(point)));
        assert!(path.len() > 500 && path.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(brush(&[]).is_empty());
    }

    #[test]
    fn ranges_hold_their_values_and_survive_odd_ones() {
        let both = range([1.0, 3.0, f64::NAN].into_iter());
        assert!(both.start < 1.0 && both.end > 3.0 && both.end < 4.0);
        assert!(range([2.0].into_iter()).contains(&2.0));
        assert_eq!(range(std::iter::empty()), 0.0..1.0);
    }
}
