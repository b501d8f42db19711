//! Area averaging: from any image to a square of any size.

/// Averages a `width x height` image down to `to_width x to_height`.
///
/// Each output pixel is the mean of the rectangle it covers, pixels cut by its border counted by
/// the part inside. Sums are separable: columns first, then rows. Enlarging repeats pixels.
pub fn area_average(
    pixels: &[f32],
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
) -> Vec<f32> {
    assert_eq!(pixels.len(), width * height, "pixels do not fill the image");
    if (width, height) == (to_width, to_height) {
        return pixels.to_vec();
    }
    let columns = Cover::all(width, to_width);
    let mut narrow = Vec::with_capacity(to_width * height);
    for row in pixels.chunks_exact(width) {
        narrow.extend(columns.iter().map(|cover| cover.mean(|at| row[at])));
    }
    let rows = Cover::all(height, to_height);
    let mut small = Vec::with_capacity(to_width * to_height);
    for cover in &rows {
        small.extend((0..to_width).map(|x| cover.mean(|at| narrow[at * to_width + x])));
    }
    small
}

/// Averages the image to fit a `side x side` square, its aspect kept, and centres it on background.
pub fn fit_square(
    pixels: &[f32],
    (width, height): (usize, usize),
    side: usize,
    background: f32,
) -> Vec<f32> {
    let long = width.max(height);
    // The long edge fills the square; a very thin image keeps one pixel.
    let fit = |edge: usize| ((2 * edge * side + long) / (2 * long)).max(1);
    let (to_width, to_height) = (fit(width), fit(height));
    let small = area_average(pixels, (width, height), (to_width, to_height));
    let mut square = vec![background; side * side];
    let (left, top) = ((side - to_width) / 2, (side - to_height) / 2);
    for (row, line) in small.chunks_exact(to_width).enumerate() {
        let start = (top + row) * side + left;
        square[start..start + to_width].copy_from_slice(line);
    }
    square
}

/// The input pixels that one output pixel covers along one axis, with their parts.
struct Cover {
    start: usize,
    weights: Vec<f32>,
}

impl Cover {
    fn all(from: usize, to: usize) -> Vec<Self> {
        (0..to).map(|at| Self::new(at, from, to)).collect()
    }

    /// In units of `1 / to` of an input pixel every border is a whole number: no rounding.
    fn new(at: usize, from: usize, to: usize) -> Self {
        let (low, high) = (at * from, (at + 1) * from);
        let (start, end) = (low / to, high.div_ceil(to));
        let weights = (start..end)
            .map(|pixel| {
                let part = high.min((pixel + 1) * to) - low.max(pixel * to);
                part as f32 / from as f32
            })
            .collect();
        Self { start, weights }
    }

    fn mean(&self, pixel: impl Fn(usize) -> f32) -> f32 {
        let parts = self.weights.iter().enumerate();
        parts
            .map(|(at, weight)| weight * pixel(self.start + at))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_are_plain_means() {
        let image = [1.0, 3.0, 10.0, 20.0, 5.0, 7.0, 30.0, 40.0];
        assert_eq!(area_average(&image, (4, 2), (2, 1)), [4.0, 25.0]);
    }

    #[test]
    fn cut_pixels_count_by_their_part() {
        // Three pixels to two: each output covers one and a half.
        let small = area_average(&[3.0, 6.0, 9.0], (3, 1), (2, 1));
        assert!((small[0] - (3.0 + 0.5 * 6.0) / 1.5).abs() < 1e-6);
        assert!((small[1] - (0.5 * 6.0 + 9.0) / 1.5).abs() < 1e-6);
    }

    #[test]
    fn the_mean_of_an_image_survives_28_to_10() {
        let image: Vec<f32> = (0..784)
            .map(|at| ((at * 37) % 101) as f32 / 101.0)
            .collect();
        let small = area_average(&image, (28, 28), (10, 10));
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        assert_eq!(small.len(), 100);
        assert!((mean(&small) - mean(&image)).abs() < 1e-5);
    }

    #[test]
    fn constant_images_stay_constant_in_both_directions() {
        for to in [1, 3, 10, 28, 100] {
            let small = area_average(&[0.25; 28 * 28], (28, 28), (to, to));
            assert!(
                small.iter().all(|value| (value - 0.25).abs() < 1e-6),
                "to {to}"
            );
        }
    }

    #[test]
    fn fitting_keeps_the_aspect() {
        // A wide image: background above and below, content in the middle.
        let square = fit_square(&[1.0; 8], (4, 2), 4, 0.0);
        let lines: Vec<f32> = square.chunks(4).map(|line| line.iter().sum()).collect();
        assert_eq!(lines, [0.0, 4.0, 4.0, 0.0]);
        assert_eq!(
            fit_square(&[1.0; 1000], (1000, 1), 28, 0.0)
                .iter()
                .sum::<f32>()
                .round(),
            28.0
        );
    }
}
