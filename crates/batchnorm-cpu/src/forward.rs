//! The forward pass: statistics of the batch, and the normalization with them or with given ones.
//!
//! ```text
//! scale = gamma * inv_std        y = act((x - mean) * scale + beta (+ residual))
//! ```
//!
//! The centred form is used everywhere. `x * scale + (beta - mean * scale)` would save a subtraction, and lose digits of the result as soon as
//! the mean is large against the spread.
//!
//! For the same reason the mean is not simply rounded to the type of the arithmetic: with a mean of 1e4 that costs 5e-4 in `f32`. What rounding
//! takes away (`mean_lo`) goes into the shift, once a channel: `(x - mean - mean_lo) * scale + beta = (x - mean) * scale + (beta - mean_lo *
//! scale)`. The difference `x - mean` of two near values is exact, and a constant channel has `mean_lo = 0`.
//!
//! **Passes over memory.** Where a group of channels fits the second-level cache, [`train`] reads x once from memory (the statistics) and once from
//! the cache (the normalization), and writes y once: 2 passes. `[32, 64, 56, 56]` is done channel by channel, 401 KB each. Where that is not
//! possible (`[4096, 1024]`: its channels are columns, and a cache full of them would use a few bytes of each memory page) x is read twice from
//! memory: 3 passes. An output that no cache can hold is written past them (`cache.rs`).

use std::ops::Range;

use crate::activation::{Activation, Epilogue, Pieces};
use crate::driver::{self, PerChannel};
use crate::memory::InOut;
use crate::simd::kernels::{Kernel, Normalize};
use crate::simd::moments::Moments;
use crate::simd::tile::Tile;
use crate::statistics::{self, Affine, Given, Statistics, check_epsilon};
use crate::{Accum, Element, Error, Layout};

/// The forward pass of training: statistics of the batch, and the output normalized with them.
///
/// `y = act((x - mean) * inv_std * gamma + beta + residual)`, with the mean and the biased variance of each channel. Without any samples the mean and
/// the variance are 0.
///
/// # Errors
///
/// [`Error::Length`] unless x, y and the residual have `layout.elements()` values and all vectors `layout.channels()`; [`Error::Value`] unless
/// `epsilon` is finite and positive, and for senseless parameters of the activation.
pub fn train<E: Element>(
    layout: Layout,
    x: InOut<'_, E>,
    affine: Affine<'_, E::Accum>,
    epsilon: f64,
    epilogue: Epilogue<'_, E>,
    out: Statistics<&mut [E::Accum]>,
) -> Result<(), Error> {
    check_output(&layout, &x)?;
    affine.check(&layout)?;
    out.check(&layout)?;
    check_epsilon(epsilon)?;
    epilogue.check(&layout)?;
    (E::compiled().train)(Train {
        layout,
        x,
        affine,
        epsilon,
        epilogue,
        out,
    });
    Ok(())
}

/// The output with given statistics: inference. `y = act((x - mean) / sqrt(variance + epsilon) * gamma + beta + residual)`.
///
/// # Errors
///
/// As for [`train`].
pub fn normalize<E: Element>(
    layout: Layout,
    x: InOut<'_, E>,
    given: Given<'_, E::Accum>,
    parameters: Affine<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
) -> Result<(), Error> {
    check_output(&layout, &x)?;
    given.check(&layout)?;
    parameters.check(&layout)?;
    epilogue.check(&layout)?;
    let [_, scale, shift] = &applied(given, parameters);
    (E::compiled().normalize)(Normalized {
        layout,
        x,
        params: [given.mean, scale, shift],
        epilogue,
    });
    Ok(())
}

/// `(x - mean) * scale + shift`, with vectors of `[channels]`.
///
/// # Errors
///
/// [`Error::Length`] as for [`train`].
pub fn affine<E: Element>(
    layout: Layout,
    x: InOut<'_, E>,
    mean: &[E::Accum],
    scale: &[E::Accum],
    shift: &[E::Accum],
) -> Result<(), Error> {
    check_output(&layout, &x)?;
    layout.expect_channels("mean", mean.len())?;
    layout.expect_channels("scale", scale.len())?;
    layout.expect_channels("shift", shift.len())?;
    (E::compiled().normalize)(Normalized {
        layout,
        x,
        params: [mean, scale, shift],
        epilogue: Epilogue::default(),
    });
    Ok(())
}

/// The mean of each channel, what rounding took from it, and the biased variance. Without any samples all are 0.
///
/// # Errors
///
/// [`Error::Length`] unless `x` has `layout.elements()` values and the others `layout.channels()`.
pub fn moments<E: Element>(
    layout: Layout,
    x: &[E],
    mean: &mut [E::Accum],
    mean_lo: &mut [E::Accum],
    variance: &mut [E::Accum],
) -> Result<(), Error> {
    layout.expect_elements("x", x.len())?;
    layout.expect_channels("mean", mean.len())?;
    layout.expect_channels("mean_lo", mean_lo.len())?;
    layout.expect_channels("variance", variance.len())?;
    (E::compiled().moments)(MomentsOf {
        layout,
        x,
        out: [mean, mean_lo, variance],
    });
    Ok(())
}

fn check_output<E: Element>(layout: &Layout, x: &InOut<'_, E>) -> Result<(), Error> {
    x.check(layout, "x", "y")?;
    if x.has_output() {
        return Ok(());
    }
    Err(Error::Value {
        name: "y",
        expected: "an output",
        got: "none".into(),
    })
}

/// `inv_std`, scale and shift of given statistics.
pub(crate) fn applied<A: Accum>(given: Given<'_, A>, affine: Affine<'_, A>) -> [Vec<A>; 3] {
    let inv_std = |v: &A| statistics::inv_std(v.to_f64(), given.epsilon);
    let inv_std: Vec<A> = given.variance.iter().map(inv_std).collect();
    let scaled = affine.gamma.iter().zip(&inv_std);
    let scale: Vec<A> = scaled.map(|(&g, &s)| statistics::scale(g, s)).collect();
    let shift = match given.mean_lo {
        None => affine.beta.to_vec(),
        Some(low) => {
            let shifted = affine.beta.iter().zip(low).zip(&scale);
            shifted
                .map(|((&b, &low), &s)| statistics::shift(b, low, s))
                .collect()
        }
    };
    [inv_std, scale, shift]
}

/// A checked call of [`train`].
pub(crate) struct Train<'a, E: Element> {
    layout: Layout,
    x: InOut<'a, E>,
    affine: Affine<'a, E::Accum>,
    epsilon: f64,
    epilogue: Epilogue<'a, E>,
    out: Statistics<&'a mut [E::Accum]>,
}

impl<E: Element> Train<'_, E> {
    pub(crate) fn run(self) {
        let pieces = pieces(self.epilogue.activation);
        match (self.epilogue.residual, self.epilogue.activation) {
            (None, Activation::None) => self.with(Normalize::<_, false, false>(pieces)),
            (None, _) => self.with(Normalize::<_, true, false>(pieces)),
            (Some(_), _) => self.with(Normalize::<_, true, true>(pieces)),
        }
    }

    fn with<K: Kernel<E::Accum>>(self, kernel: K) {
        let Self {
            layout,
            x,
            affine: Affine { gamma, beta },
            epsilon,
            epilogue,
            out,
        } = self;
        let tile = Tile::new(&layout.flattened()).read_write(x);
        let tile = with_residual(tile, epilogue);
        let n = layout.samples_per_channel().max(1) as f64;
        let between = |range: Range<usize>,
                       [means, m2s]: [&[f64]; 2],
                       arrays: &mut PerChannel<'_, E::Accum>| {
            let [mean, scale, shift, mean_lo, variance, inv_std, ..] = arrays;
            let (gamma, beta) = (&gamma[range.clone()], &beta[range]);
            for c in 0..gamma.len() {
                mean[c] = E::Accum::from_f64(means[c]);
                mean_lo[c] = E::Accum::from_f64(means[c] - mean[c].to_f64());
                variance[c] = E::Accum::from_f64(m2s[c] / n);
                inv_std[c] = statistics::inv_std(m2s[c] / n, epsilon);
                scale[c] = statistics::scale(gamma[c], inv_std[c]);
                shift[c] = statistics::shift(beta[c], mean_lo[c], scale[c]);
            }
        };
        let (mut scale, mut shift) = (gamma.to_vec(), beta.to_vec());
        let arrays = [
            out.mean,
            &mut scale,
            &mut shift,
            out.mean_lo,
            out.variance,
            out.inv_std,
            &mut [],
            &mut [],
        ];
        let moments = Moments::next_to::<E::Accum>(epsilon);
        driver::reduce_then_apply(layout, tile, (moments, kernel), arrays, between);
    }
}

/// A checked call of [`normalize`] or [`affine`]; the parameters are mean, scale and shift.
pub(crate) struct Normalized<'a, E: Element> {
    pub layout: Layout,
    pub x: InOut<'a, E>,
    pub params: [&'a [E::Accum]; 3],
    pub epilogue: Epilogue<'a, E>,
}

impl<E: Element> Normalized<'_, E> {
    pub(crate) fn run(self) {
        let pieces = pieces(self.epilogue.activation);
        match (self.epilogue.residual, self.epilogue.activation) {
            (None, Activation::None) => self.with(Normalize::<_, false, false>(pieces)),
            (None, _) => self.with(Normalize::<_, true, false>(pieces)),
            (Some(_), _) => self.with(Normalize::<_, true, true>(pieces)),
        }
    }

    fn with<K: Kernel<E::Accum>>(self, kernel: K) {
        let tile = Tile::new(&self.layout.flattened()).read_write(self.x);
        let tile = with_residual(tile, self.epilogue);
        let [mean, scale, shift] = self.params;
        let params = [mean, scale, shift, &[], &[], &[]];
        driver::apply(self.layout, tile, kernel, params);
    }
}

/// A checked call of [`moments`]; the results are `mean`, `mean_lo` and variance.
pub(crate) struct MomentsOf<'a, E: Element> {
    layout: Layout,
    x: &'a [E],
    out: [&'a mut [E::Accum]; 3],
}

impl<E: Element> MomentsOf<'_, E> {
    pub(crate) fn run(self) {
        let tile = Tile::new(&self.layout.flattened()).read(self.x);
        // What underflows is nothing next to the smallest normal variance either.
        let moments = Moments::next_to::<E::Accum>(1.0);
        let [means, m2s] = driver::reduce(self.layout, tile, moments, [&[]; 3]);
        let n = self.layout.samples_per_channel().max(1) as f64;
        let [mean, mean_lo, variance] = self.out;
        for c in 0..mean.len() {
            mean[c] = E::Accum::from_f64(means[c]);
            mean_lo[c] = E::Accum::from_f64(means[c] - mean[c].to_f64());
            variance[c] = E::Accum::from_f64(m2s[c] / n);
        }
    }
}

pub(crate) fn pieces<A: Accum>(activation: Activation) -> Pieces<A> {
    Pieces::new(activation).expect("checked by the public function")
}

fn with_residual<'a, E: Element>(tile: Tile<'a, E>, epilogue: Epilogue<'a, E>) -> Tile<'a, E> {
    match epilogue.residual {
        Some(residual) => tile.read(residual),
        None => tile,
    }
}
