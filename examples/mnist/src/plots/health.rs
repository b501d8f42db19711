//! The channels of a layer, each curve in order of size: how far its statistics are from those of the test
//! images, its variance, its gamma.

use std::path::Path;

use anyhow::Result;
use burn_batchnorm::LayerHealth;

use super::{BLUE, GREEN, INK, ORANGE, PANEL, PURPLE, Panel, Point, numbers, panels};
use crate::health::Channels;

/// Draws `health.png`.
pub fn health(path: &Path, layer: &LayerHealth, channels: &Channels) -> Result<()> {
    let panel = |title, series| {
        let labels = numbers(channels.gamma.len());
        Panel::new(title, "channels in order", labels, series)
    };
    let drift = panel(
        format!("Drift, {} channels of {}", layer.channels, layer.path),
        vec![
            (GREEN, sorted(&channels.mean_drift, f64::abs)),
            (PURPLE, sorted(&channels.variance_drift, f64::abs)),
        ],
    );
    let variance = panel(
        format!("log10 variance, {} vanishing", layer.vanishing.len()),
        vec![
            (BLUE, sorted(&channels.running_var, f64::log10)),
            (ORANGE, sorted(&channels.test_var, f64::log10)),
        ],
    );
    let gamma = panel(
        format!("|gamma|, {} dead", layer.dead.len()),
        vec![(INK, sorted(&channels.gamma, f64::abs))],
    );
    let names = [
        (GREEN, "|mean|, in deviations"),
        (PURPLE, "|ln variance|"),
        (BLUE, "running variance"),
        (ORANGE, "variance of the test images"),
        (INK, "gamma"),
    ];
    panels(path, PANEL, &names, &[drift, variance, gamma])
}

/// Values in order of size. Those that are no numbers, such as the logarithm of 0, have a place too.
fn sorted(values: &[f32], of: fn(f64) -> f64) -> Vec<Point> {
    let mut values: Vec<f64> = values.iter().map(|value| of(f64::from(*value))).collect();
    values.sort_by(f64::total_cmp);
    let points = (1..).zip(values);
    points
        .map(|(at, value)| (f64::from(at), value, 0.0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_without_a_number_keep_their_place() {
        let points = sorted(&[10.0, 0.0, 1.0], f64::log10);
        let panel = Panel::new(String::new(), "", numbers(3), vec![(INK, points)]);
        assert_eq!(panel.series[0].1, [(2.0, 0.0, 0.0), (3.0, 1.0, 0.0)]);
    }

    #[test]
    fn draws_channels_that_are_broken_too() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("health.png");
        let channels = Channels {
            running_mean: vec![0.0, f32::NAN, 1.0],
            running_var: vec![1.0, 0.0, -1.0],
            test_mean: vec![0.5, 0.0, 1.0],
            test_var: vec![2.0, 0.0, 1.0],
            mean_drift: vec![0.5, f32::NAN, 0.0],
            variance_drift: vec![0.7, f32::NEG_INFINITY, 0.1],
            gamma: vec![1.0, 0.0, f32::INFINITY],
        };
        health(&path, &LayerHealth::default(), &channels).expect("drawn");
        let image = image::open(&path).expect("a PNG file").to_rgb8();
        for color in [GREEN, PURPLE, BLUE, ORANGE] {
            let color = [color.0, color.1, color.2];
            assert!(image.pixels().filter(|pixel| pixel.0 == color).count() > 20);
        }
    }
}
