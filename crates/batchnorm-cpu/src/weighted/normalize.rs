//! The output of weighted positions with given statistics.

use super::{Weights, curved};
use crate::activation::{Applied, Epilogue, Pieces};
use crate::driver;
use crate::forward::{applied, with_residual};
use crate::memory::InOut;
use crate::simd::kernels::{Activate, Nothing};
use crate::simd::tile::Tile;
use crate::simd::weighted::{Behind, WeightedNormalize};
use crate::{Element, Layout};

/// A checked call of [`normalize_weighted`](crate::normalize_weighted); the parameters are mean, scale and shift.
pub(crate) struct Normalize<'a, E: Element> {
    pub(super) layout: Layout,
    pub(super) x: InOut<'a, E>,
    pub(super) weights: Weights<'a, E::Accum>,
    pub(super) params: [&'a [E::Accum]; 3],
    pub(super) epilogue: Epilogue<'a, E>,
}

impl<E: Element> Normalize<'_, E> {
    pub(crate) fn run(self) {
        let residual = self.epilogue.residual.is_some();
        match (applied(self.epilogue.activation), residual) {
            (Applied::Nothing, false) => self.with(Nothing),
            (Applied::Nothing, true) => self.with(Pieces::identity()),
            (Applied::Pieces(pieces), _) => self.with(pieces),
            (Applied::Curve(curve), _) => self.with(curved(curve)),
        }
    }

    fn with<Act: Activate<E::Accum>>(self, activation: Act) {
        let kernel = WeightedNormalize(Behind {
            activation,
            residual: self.epilogue.residual.is_some(),
        });
        let tile = Tile::new(&self.layout.flattened()).read_write(self.x);
        let tile = with_residual(tile, self.epilogue, kernel).weigh(&self.layout, self.weights);
        let [mean, scale, shift] = self.params;
        let params = [mean, scale, shift, &[], &[], &[]];
        driver::apply(self.layout, tile, kernel, params);
    }
}
