//! The normalization with given statistics: inference, and any other affine map of channels.

use crate::activation::{Applied, Epilogue, Pieces};
use crate::driver;
use crate::forward::{applied, check_output, with_residual};
use crate::memory::InOut;
use crate::simd::kernels::{Activate, Curved, Kernel, Normalize, Nothing};
use crate::simd::tile::Tile;
use crate::simd::weighted::{Behind, WeightedNormalize};
use crate::simd::{Isa, Plain};
use crate::statistics::{self, Affine, Given};
use crate::{Accum, Element, Error, Layout, Weights};

/// The output with given statistics: inference. `y = act((x - mean) / sqrt(variance + epsilon) * gamma + beta + residual)`.
///
/// # Errors
///
/// As for [`train`](crate::train).
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
    with_applied(layout, given, parameters, |params| {
        (E::compiled().normalize)(Normalized {
            layout,
            x,
            weights: None,
            params,
            epilogue,
        });
    });
    Ok(())
}

/// Calls `then` with the parameters of the kernels for given statistics: mean, scale and shift.
pub(crate) fn with_applied<A: Accum>(
    layout: Layout,
    given: Given<'_, A>,
    parameters: Affine<'_, A>,
    then: impl FnOnce([&[A]; 3]),
) {
    let channels = layout.channels();
    let mut applied = vec![A::default(); 3 * channels];
    let (inv_std, applied) = applied.split_at_mut(channels);
    let (scale, shift) = applied.split_at_mut(channels);
    Isa::current().run(Plain(
        #[inline(always)]
        || {
            given.set_inv_std(inv_std);
            let applied = [&mut *scale, &mut *shift];
            set_applied(parameters, given.mean_lo, inv_std, applied);
        },
    ));
    then([given.mean, scale, shift]);
}

/// `(x - mean) * scale + shift`, with vectors of `[channels]`.
///
/// # Errors
///
/// [`Error::Length`] as for [`train`](crate::train).
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
        weights: None,
        params: [mean, scale, shift],
        epilogue: Epilogue::default(),
    });
    Ok(())
}

/// Sets the parameters of the kernels, scale and shift, for statistics with this `inv_std`.
#[inline(always)]
pub(crate) fn set_applied<A: Accum>(
    affine: Affine<'_, A>,
    mean_lo: Option<&[A]>,
    inv_std: &[A],
    [scale, shift]: [&mut [A]; 2],
) {
    for ((scale, &gamma), &inv_std) in scale.iter_mut().zip(affine.gamma).zip(inv_std) {
        *scale = statistics::scale(gamma, inv_std);
    }
    shift.copy_from_slice(affine.beta);
    if let Some(mean_lo) = mean_lo {
        for ((shift, &low), &scale) in shift.iter_mut().zip(mean_lo).zip(&*scale) {
            *shift = statistics::shift(*shift, low, scale);
        }
    }
}

/// A checked call of a function here, or of [`normalize_weighted`](crate::normalize_weighted); the parameters are mean, scale and shift.
pub(crate) struct Normalized<'a, E: Element> {
    pub layout: Layout,
    pub x: InOut<'a, E>,
    pub weights: Option<Weights<'a, E::Accum>>,
    pub params: [&'a [E::Accum]; 3],
    pub epilogue: Epilogue<'a, E>,
}

impl<E: Element> Normalized<'_, E> {
    pub(crate) fn run(self) {
        let residual = self.epilogue.residual.is_some();
        match (applied(self.epilogue.activation), residual) {
            (Applied::Nothing, false) => self.behind::<_, false>(Nothing),
            (Applied::Nothing, true) => self.behind::<_, true>(Pieces::identity()),
            (Applied::Pieces(pieces), false) => self.behind::<_, false>(pieces),
            (Applied::Pieces(pieces), true) => self.behind::<_, true>(pieces),
            (Applied::Curve(curve), residual) => self.behind::<_, true>(Curved { curve, residual }),
        }
    }

    fn behind<Act: Activate<E::Accum>, const RESIDUAL: bool>(self, activation: Act) {
        let residual = self.epilogue.residual.is_some();
        match self.weights {
            None => self.with(Normalize::<_, RESIDUAL>(activation)),
            Some(_) => self.with(WeightedNormalize(Behind {
                activation,
                residual,
            })),
        }
    }

    fn with<K: Kernel<E::Accum>>(self, kernel: K) {
        let tile = Tile::new(&self.layout.flattened()).read_write(self.x);
        let mut tile = with_residual(tile, self.epilogue, kernel);
        if let Some(weights) = self.weights {
            tile = tile.weigh(&self.layout, weights);
        }
        let [mean, scale, shift] = self.params;
        let params = [mean, scale, shift, &[], &[], &[]];
        driver::apply(self.layout, tile, kernel, params);
    }
}
