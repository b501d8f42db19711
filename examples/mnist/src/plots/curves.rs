//! Loss and accuracy by epoch.

use std::path::Path;

use plotters::prelude::*;

use super::{Area, BLUE, DrawError, FAINT, INK, ORANGE, brush, font, key, picture, range};
use crate::artifacts::Artifacts;
use crate::error::Result;
use crate::history::{EpochRow, History};

/// Draws `learning-curves.png`; `test` is the final test loss and accuracy.
pub fn learning_curves(path: &Path, history: &History, test: (f64, f64)) -> Result<()> {
    picture(path, Artifacts::CURVES, (1280, 560), |area| {
        let (left, right) = area.split_horizontally(640);
        let loss = Panel {
            title: format!("Loss (test {:.4})", test.0),
            train: |row| row.train_loss,
            valid: |row| row.valid_loss,
        };
        let accuracy = Panel {
            title: format!("Accuracy in % (test {:.2}%)", 100.0 * test.1),
            train: |row| 100.0 * row.train_accuracy,
            valid: |row| row.valid_accuracy.map(|share| 100.0 * share),
        };
        loss.draw(&left, history)?;
        accuracy.draw(&right, history)
    })
}

struct Panel {
    title: String,
    train: fn(&EpochRow) -> f64,
    valid: fn(&EpochRow) -> Option<f64>,
}

impl Panel {
    fn draw(&self, area: &Area<'_>, history: &History) -> std::result::Result<(), DrawError> {
        let train: Vec<(f64, f64)> = history
            .rows
            .iter()
            .map(|row| (row.epoch as f64, (self.train)(row)))
            .collect();
        let valid: Vec<(f64, f64)> = history
            .rows
            .iter()
            .filter_map(|row| Some((row.epoch as f64, (self.valid)(row)?)))
            .collect();
        let last = history.rows.len().max(1) as f64;
        let values = range(train.iter().chain(&valid).map(|point| point.1));
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, font(26))
            .margin(16)
            .x_label_area_size(54)
            .y_label_area_size(72)
            .build_cartesian_2d(0.5..last + 0.5, values)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .x_labels(history.rows.len().min(12))
            .x_label_formatter(&|epoch| format!("{epoch:.0}"))
            .y_labels(8)
            .y_label_formatter(&|value| format!("{}", (value * 1e3).round() / 1e3))
            .x_desc("epoch")
            .label_style(font(20))
            .axis_desc_style(font(20))
            .draw()?;
        for (points, color) in [(&train, BLUE), (&valid, ORANGE)] {
            chart.draw_series(
                brush(points)
                    .into_iter()
                    .map(|point| Circle::new(point, 1, color.filled())),
            )?;
            chart.draw_series(
                points
                    .iter()
                    .map(|point| Circle::new(*point, 5, color.filled())),
            )?;
        }
        // Where the curves are not: losses fall to the right, accuracies rise.
        let (left, top) = (
            430,
            if self.title.starts_with("Loss") {
                90
            } else {
                410
            },
        );
        key(area, (left, top), BLUE, "train")?;
        match valid.is_empty() {
            true => Ok(()),
            false => key(area, (left, top + 28), ORANGE, "validation"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_with_and_without_validation_and_for_one_epoch() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("curves.png");
        let row = |epoch, valid| EpochRow {
            epoch,
            train_loss: 1.0 / epoch as f64,
            valid_loss: valid,
            valid_accuracy: valid,
            ..EpochRow::default()
        };
        for rows in [vec![row(1, Some(0.5))], vec![row(1, None), row(2, None)]] {
            learning_curves(&path, &History { rows }, (0.5, 0.8)).expect("drawn");
            let image = image::open(&path).expect("a PNG file").to_rgb8();
            assert_eq!(image.dimensions(), (1280, 560));
            let colors = image
                .pixels()
                .filter(|pixel| pixel.0 == [0, 114, 178])
                .count();
            assert!(colors > 50, "{colors} pixels of the training curve");
        }
    }
}
