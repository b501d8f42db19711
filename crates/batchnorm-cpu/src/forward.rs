//! The forward pass of training: statistics of the batch, and the normalization with them.
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

use crate::activation::{Activation, Applied, Epilogue, Pieces};
use crate::cut::PerChannel;
use crate::driver::{self, Next, Reduced};
use crate::memory::InOut;
use crate::simd::kernels::{Curved, Kernel, Normalize, Nothing};
use crate::simd::moments::Moments;
use crate::simd::tile::Tile;
use crate::statistics::{self, Affine, Statistics, check_epsilon};
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

pub(crate) fn check_output<E: Element>(layout: &Layout, x: &InOut<'_, E>) -> Result<(), Error> {
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
        let residual = self.epilogue.residual.is_some();
        match (applied(self.epilogue.activation), residual) {
            (Applied::Nothing, false) => self.with(Normalize::<_, false>(Nothing)),
            (Applied::Nothing, true) => self.with(Normalize::<_, true>(Pieces::identity())),
            (Applied::Pieces(pieces), false) => self.with(Normalize::<_, false>(pieces)),
            (Applied::Pieces(pieces), true) => self.with(Normalize::<_, true>(pieces)),
            (Applied::Curve(curve), residual) => {
                self.with(Normalize::<_, true>(Curved { curve, residual }))
            }
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
        let tile = with_residual(tile, epilogue, kernel);
        let n = layout.samples_per_channel().max(1) as f64;
        let mut applied = vec![E::Accum::default(); 2 * layout.channels()];
        let (scale, shift) = applied.split_at_mut(layout.channels());
        let arrays = [
            out.mean,
            scale,
            shift,
            out.mean_lo,
            out.variance,
            out.inv_std,
            &mut [],
            &mut [],
        ];
        let moments = Moments::next_to::<E::Accum>(epsilon);
        driver::reduce_then_apply(
            layout,
            tile,
            (moments, kernel),
            arrays,
            #[inline(always)]
            |Reduced { range, pairs, .. }, arrays: &mut PerChannel<'_, E::Accum>| {
                let [mean, scale, shift, mean_lo, variance, inv_std, ..] = arrays;
                let len = range.len();
                let (gamma, beta) = (&gamma[range.clone()], &beta[range]);
                let (scale, shift, inv_std) =
                    (&mut scale[..len], &mut shift[..len], &mut inv_std[..len]);
                rounded(n, pairs, [mean, mean_lo, variance]);
                let (mean_lo, m2s) = (&mean_lo[..len], &pairs[1][..len]);
                for c in 0..len {
                    inv_std[c] = statistics::inv_std(m2s[c] / n, epsilon);
                    scale[c] = statistics::scale(gamma[c], inv_std[c]);
                    shift[c] = statistics::shift(beta[c], mean_lo[c], scale[c]);
                }
                Next::Done
            },
        );
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
        let n = self.layout.samples_per_channel().max(1) as f64;
        let mut arrays = PerChannel::default();
        [arrays[0], arrays[1], arrays[2]] = self.out;
        driver::reduce(
            self.layout,
            tile,
            moments,
            arrays,
            #[inline(always)]
            |Reduced { pairs, .. },
             [mean, mean_lo, variance, ..]: &mut PerChannel<'_, E::Accum>| {
                rounded(n, pairs, [mean, mean_lo, variance]);
                Next::Done
            },
        );
    }
}

/// The moments of channels in the type of the arithmetic: mean, what rounding takes from it, and variance.
#[inline(always)]
fn rounded<A: Accum>(n: f64, [means, m2s]: [&[f64]; 2], [mean, mean_lo, variance]: [&mut [A]; 3]) {
    let len = mean.len();
    let (means, m2s) = (&means[..len], &m2s[..len]);
    let (mean_lo, variance) = (&mut mean_lo[..len], &mut variance[..len]);
    for c in 0..len {
        mean[c] = A::from_f64(means[c]);
        mean_lo[c] = A::from_f64(means[c] - mean[c].to_f64());
        variance[c] = A::from_f64(m2s[c] / n);
    }
}

pub(crate) fn applied<A: Accum>(activation: Activation) -> Applied<A> {
    Applied::new(activation).expect("checked by the public function")
}

/// Adds what follows x (and the gradient of y) among the inputs of kernel `K`.
pub(crate) fn with_residual<'a, E: Element, K: Kernel<E::Accum>>(
    tile: Tile<'a, E>,
    epilogue: Epilogue<'a, E>,
    _kernel: K,
) -> Tile<'a, E> {
    match epilogue.residual {
        Some(residual) => tile.read(residual),
        None => tile.read_first_for::<K>(),
    }
}
