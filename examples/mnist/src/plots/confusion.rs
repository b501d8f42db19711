//! What is taken for what.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{BLUE, INK, ORANGE, centred, font, picture, placed};
use crate::data::CLASSES;
use crate::metrics::Scores;

const CELL: i32 = 144;
const LEFT: i32 = 380;
const TOP: i32 = 380;
const SIZE: i32 = CLASSES as i32 * CELL;

/// Draws `confusion-matrix.png`: a row for each class, a column for each prediction.
pub fn confusion_matrix(path: &Path, scores: &Scores, names: &[String]) -> Result<()> {
    let (width, height) = (LEFT + SIZE + 60, TOP + SIZE + 60);
    picture(path, (width as u32, height as u32), |area| {
        let title = format!(
            "Test: {} of {} right ({:.2}%)",
            scores.correct(),
            scores.count(),
            100.0 * scores.accuracy()
        );
        area.draw(&Text::new(title, (width / 2, 52), centred(52)))?;
        let right = placed(40, HPos::Right, VPos::Center);
        let up = TextStyle::from(font(40).font.transform(FontTransform::Rotate270))
            .color(&INK)
            .pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new("class", (LEFT - 24, TOP - 120), right.clone()))?;
        area.draw(&Text::new(
            "taken for",
            (LEFT - 24, TOP - 172),
            right.clone(),
        ))?;
        for (at, name) in names.iter().enumerate() {
            let middle = at as i32 * CELL + CELL / 2;
            area.draw(&Text::new(
                name.as_str(),
                (LEFT - 24, TOP + middle),
                right.clone(),
            ))?;
            area.draw(&Text::new(
                name.as_str(),
                (LEFT + middle, TOP - 24),
                up.clone(),
            ))?;
        }
        for (class, row) in scores.confusion.iter().enumerate() {
            let total: usize = row.iter().sum();
            for (predicted, count) in row.iter().enumerate() {
                let share = *count as f64 / total.max(1) as f64;
                let (x, y) = (LEFT + predicted as i32 * CELL, TOP + class as i32 * CELL);
                let corners = [(x, y), (x + CELL - 4, y + CELL - 4)];
                let shade = shade(share, class == predicted);
                area.draw(&Rectangle::new(corners, shade.filled()))?;
                if *count > 0 {
                    let color = if share > 0.55 { WHITE } else { INK };
                    let middle = (x + CELL / 2 - 2, y + CELL / 2 - 2);
                    area.draw(&Text::new(
                        count.to_string(),
                        middle,
                        centred(40).color(&color),
                    ))?;
                }
            }
        }
        Ok(())
    })
}

/// From near white to blue on the diagonal, to orange elsewhere; the root lifts the rare mistakes.
fn shade(share: f64, right: bool) -> RGBColor {
    let RGBColor(r, g, b) = if right { BLUE } else { ORANGE };
    let mix = |to: u8| (246.0 + share.sqrt() * (f64::from(to) - 246.0)).round() as u8;
    RGBColor(mix(r), mix(g), mix(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_all_cells() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("confusion.png");
        let mut confusion = [[0; CLASSES]; CLASSES];
        (0..CLASSES).for_each(|class| confusion[class][class] = 10);
        let scores = Scores {
            loss_sum: 1.0,
            confusion,
        };
        let names: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
        confusion_matrix(&path, &scores, &names).expect("drawn");
        let image = image::open(&path).expect("a PNG file").to_rgb8();
        for class in 0..CLASSES as i32 {
            let at = |start: i32| ((start + class * CELL) / 2 + 6) as u32;
            assert_eq!(
                image.get_pixel(at(LEFT), at(TOP)).0,
                [0, 114, 178],
                "cell {class}"
            );
        }
        let sum = |RGBColor(r, g, b): RGBColor| u32::from(r) + u32::from(g) + u32::from(b);
        assert!(sum(shade(0.0, true)) > sum(shade(0.1, true)));
        assert_eq!(shade(1.0, false), ORANGE);
    }
}
