//! Running statistics: the one formula that they follow batches by.

use crate::{Accum, Error};

/// `out = keep * running + add * batch`, value by value, in `f64` and rounded once.
///
/// A factor of 0 leaves its side out, whatever it is: `keep = 0` replaces even a NaN, `add = 0` keeps the old value.
///
/// ```
/// use batchnorm_cpu::blend;
/// let mut out = [0.0f32; 2];
/// // A momentum of 0.25, with Bessel's correction for four values.
/// blend(&[1.0, 2.0], &[3.0, 6.0], 0.75, 0.25 * 4.0 / 3.0, &mut out)?;
/// assert_eq!(out, [1.75, 3.5]);
/// # Ok::<(), batchnorm_cpu::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Length`] unless all slices have the same length.
pub fn blend<A: Accum>(
    running: &[A],
    batch: &[A],
    keep: f64,
    add: f64,
    out: &mut [A],
) -> Result<(), Error> {
    Error::expect_length("batch", running.len(), "channels", batch.len())?;
    Error::expect_length("out", running.len(), "channels", out.len())?;
    let part = |factor: f64, value: A| {
        if factor == 0.0 {
            0.0
        } else {
            factor * value.to_f64()
        }
    };
    for ((out, &running), &batch) in out.iter_mut().zip(running).zip(batch) {
        *out = A::from_f64(part(keep, running) + part(add, batch));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blended(running: f32, batch: f32, keep: f64, add: f64) -> f32 {
        let mut out = [f32::NAN];
        blend(&[running], &[batch], keep, add, &mut out).expect("equal lengths");
        out[0]
    }

    #[test]
    fn a_factor_of_zero_leaves_its_side_out() {
        assert_eq!(blended(f32::NAN, 5.0, 0.0, 1.0), 5.0);
        assert_eq!(blended(2.5, f32::INFINITY, 1.0, 0.0), 2.5);
        assert_eq!(blended(1.0, 5.0, 0.75, 0.25), 2.0);
        assert!(blended(f32::NAN, 5.0, 0.9, 0.1).is_nan());
    }

    #[test]
    fn lengths_are_checked() {
        assert!(blend(&[0.0; 2], &[0.0], 0.5, 0.5, &mut [0.0; 2]).is_err());
        assert!(blend(&[0.0; 2], &[0.0; 2], 0.5, 0.5, &mut [0.0]).is_err());
    }
}
