//! Weights of positions, and what lies where there are none.

use batchnorm_cube::{Element, Layout, Weights};
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::device::{Random, upload, upload_tensor};

/// How positions are weighted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Positions {
    /// Not at all.
    Even,
    /// The same for all channels.
    Shared,
    /// Of every channel its own.
    Own,
}

impl Positions {
    pub const ALL: [Self; 3] = [Self::Even, Self::Shared, Self::Own];

    /// The weight of every element. A third is 0, one by one and in runs; every channel has some.
    pub fn weights(self, layout: Layout) -> Vec<f64> {
        if self == Self::Even {
            return vec![1.0; layout.len()];
        }
        let Layout {
            outer,
            channels,
            inner,
            ..
        } = layout;
        let mut random = Random(0x2545_F491_4F6C_DD1D ^ layout.len() as u64);
        let rows = match self {
            Self::Own => outer * channels,
            _ => outer,
        };
        let mut weights = Vec::with_capacity(rows * inner);
        for row in 0..rows {
            for i in 0..inner {
                let padding = row % 4 == 1 && i >= inner / 2;
                let weight = 3.0 * random.uniform() - 0.6;
                weights.push(if padding { 0.0 } else { weight.max(0.0) });
            }
        }
        // Of the last row, the last value counts.
        let last = match self {
            Self::Own => channels,
            _ => 1,
        };
        for row in rows - last..rows {
            weights[(row + 1) * inner - 1] = 0.75;
        }
        let index = |element: usize| match self {
            Self::Own => element,
            _ => element / (channels * inner) * inner + element % inner,
        };
        (0..layout.len()).map(|i| weights[index(i)]).collect()
    }

    /// Where there is no weight, x may be anything.
    pub fn spoil(self, weights: &[f64], x: &mut [f64]) {
        let absent = x.iter_mut().zip(weights).filter(|(_, w)| **w == 0.0);
        for ((x, _), other) in absent.zip([f64::NAN, 2.5, f64::INFINITY, -1.5].iter().cycle()) {
            *x = *other;
        }
    }

    /// The weights of all elements, as the kernels read them.
    pub fn upload(
        self,
        client: &Client,
        float: Element,
        layout: Layout,
        weights: &[f64],
    ) -> Option<Handle> {
        let Layout {
            channels, inner, ..
        } = layout;
        match self {
            Self::Even => None,
            Self::Own => Some(upload_tensor(client, float, layout, weights)),
            Self::Shared => {
                let rows = weights.chunks_exact(channels * inner);
                let shared: Vec<f64> = rows.flat_map(|row| row[..inner].to_vec()).collect();
                Some(upload(client, float, &shared))
            }
        }
    }

    pub fn handle(self, weights: &Handle) -> Weights<'_> {
        match self {
            Self::Own => Weights::Own(weights),
            _ => Weights::Shared(weights),
        }
    }
}
