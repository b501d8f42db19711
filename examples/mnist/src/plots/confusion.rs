//! What is taken for what.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{DrawError, centred, font, picture};
use crate::artifacts::Artifacts;
use crate::data::CLASSES;
use crate::error::Result;
use crate::evaluation::Evaluation;

const CELL: i32 = 72;
const LEFT: i32 = 190;
const TOP: i32 = 190;
const TITLE: i32 = 40;

/// Draws `confusion-matrix.png`: a row for each class, a column for each prediction.
pub fn confusion_matrix(path: &Path, evaluation: &Evaluation, names: &[String]) -> Result<()> {
    let size = CLASSES as i32 * CELL;
    let (width, height) = (LEFT + size + 30, TOP + size + 30);
    picture(
        path,
        Artifacts::CONFUSION,
        (width as u32, height as u32),
        |area| {
            let title = format!(
                "Test: {} of {} right ({:.2}%)",
                evaluation.scores.correct,
                evaluation.scores.count,
                100.0 * evaluation.scores.accuracy()
            );
            area.draw(&Text::new(title, (width / 2, TITLE / 2 + 6), centred(26)))?;
            let right = font(20).pos(Pos::new(HPos::Right, VPos::Center));
            let up = TextStyle::from(font(20).font.transform(FontTransform::Rotate270))
                .color(&super::INK)
                .pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new("class", (LEFT - 12, TOP - 60), right.clone()))?;
            area.draw(&Text::new(
                "taken for",
                (LEFT - 12, TOP - 86),
                right.clone(),
            ))?;
            for (at, name) in names.iter().enumerate() {
                let middle = at as i32 * CELL + CELL / 2;
                area.draw(&Text::new(
                    name.as_str(),
                    (LEFT - 12, TOP + middle),
                    right.clone(),
                ))?;
                area.draw(&Text::new(
                    name.as_str(),
                    (LEFT + middle, TOP - 12),
                    up.clone(),
                ))?;
            }
            for (class, row) in evaluation.confusion.iter().enumerate() {
                let total: usize = row.iter().sum();
                for (predicted, count) in row.iter().enumerate() {
                    let share = *count as f64 / total.max(1) as f64;
                    let (x, y) = (LEFT + predicted as i32 * CELL, TOP + class as i32 * CELL);
                    area.draw(&Rectangle::new(
                        [(x, y), (x + CELL - 2, y + CELL - 2)],
                        shade(share, class == predicted).filled(),
                    ))?;
                    let color = if share > 0.55 { WHITE } else { super::INK };
                    if *count > 0 {
                        let text = centred(20).color(&color);
                        area.draw(&Text::new(
                            count.to_string(),
                            (x + CELL / 2 - 1, y + CELL / 2 - 1),
                            text,
                        ))?;
                    }
                }
            }
            Ok::<(), DrawError>(())
        },
    )
}

/// From near white to blue on the diagonal, to orange elsewhere; the root lifts the rare mistakes.
fn shade(share: f64, right: bool) -> RGBColor {
    let strength = share.sqrt();
    let RGBColor(r, g, b) = if right { super::BLUE } else { super::ORANGE };
    let mix = |from: u8, to: u8| {
        (f64::from(from) + strength * (f64::from(to) - f64::from(from))).round() as u8
    };
    RGBColor(mix(246, r), mix(246, g), mix(246, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Scores;

    #[test]
    fn draws_all_cells() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("confusion.png");
        let mut confusion = [[0; CLASSES]; CLASSES];
        (0..CLASSES).for_each(|class| confusion[class][class] = 10);
        let scores = Scores {
            count: 100,
            correct: 100,
            loss_sum: 1.0,
        };
        let names: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
        confusion_matrix(&path, &Evaluation { scores, confusion }, &names).expect("drawn");
        let image = image::open(&path).expect("a PNG file").to_rgb8();
        let inside = |class: i32| {
            let at = |start: i32| (start + class * CELL + 6) as u32;
            image.get_pixel(at(LEFT), at(TOP)).0
        };
        for class in 0..CLASSES as i32 {
            assert_eq!(inside(class), [0, 114, 178], "cell {class}");
        }
    }

    #[test]
    fn shades_grow_with_the_share() {
        let sum = |RGBColor(r, g, b): RGBColor| u32::from(r) + u32::from(g) + u32::from(b);
        assert!(sum(shade(0.0, true)) > sum(shade(0.1, true)));
        assert!(sum(shade(0.1, true)) > sum(shade(1.0, true)));
        assert_eq!(shade(1.0, false), super::super::ORANGE);
    }
}
