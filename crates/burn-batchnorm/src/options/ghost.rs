//! Ghost batches: the same normalization, of a view with more channels.
//!
//! Sample `i` of `N` belongs to ghost batch `i mod G`. So `[N, C, ..]` with the samples in front is
//! `[N / G, G, C, ..]` in memory, and the statistics of ghost batch `g` and channel `c` are those of channel
//! `g * C + c` of the view `(N / G, G * C, inner)`: nothing is moved. Where `G` does not divide `N`, the
//! batch is filled up with samples that have no weight.

use burn::tensor::Tensor;

use crate::config::{Ghost, GhostVariance};
use crate::operands::Operands;
use crate::statistics::{Observation, packed, rows};
use crate::view::View;

/// Normalizes each ghost batch by its own statistics. Returns what the running ones see of the whole.
pub(crate) fn normalize<const D: usize>(
    operands: Operands<D>,
    weights: Option<Tensor<3>>,
    ghost: Ghost,
) -> (Tensor<D>, Observation) {
    let view = operands.view();
    let shape = operands.input().shape();
    // Samples in front, then channels.
    let samples_axis = usize::from(view.axis == 0);
    let samples = shape[samples_axis];
    let View { channels, .. } = view;
    let inner = view.outer * view.inner / samples;
    let groups = ghost.batches(samples, inner);
    let rounds = samples.div_ceil(groups);
    let missing = rounds * groups - samples;

    // The other axes in their order: the samples, the channels, the rest.
    let mut order: Vec<usize> = vec![samples_axis, view.axis];
    order.extend((0..D).filter(|axis| ![samples_axis, view.axis].contains(axis)));
    let order: [isize; D] = std::array::from_fn(|axis| order[axis] as isize);
    let permuted = order
        .iter()
        .enumerate()
        .any(|(at, axis)| at as isize != *axis);
    let to_front = |tensor: Tensor<D>| match permuted {
        true => tensor.permute(order),
        false => tensor,
    };
    let fill = |tensor: Tensor<3>| match missing {
        0 => tensor,
        missing => {
            let [_, channels, inner] = tensor.dims();
            let options = (&tensor.device(), tensor.dtype());
            Tensor::cat(
                vec![tensor, Tensor::zeros([missing, channels, inner], options)],
                0,
            )
        }
    };
    let split = |tensor: Tensor<D>| {
        fill(to_front(tensor).reshape([samples, channels, inner])).reshape([
            rounds,
            groups * channels,
            inner,
        ])
    };

    // Positions that no ghost batch has weigh nothing.
    let weights = match (weights, missing) {
        (None, 0) => None,
        (None, _) => {
            let options = (&operands.input().device(), operands.computed());
            Some(Tensor::<3>::ones([samples, channels, inner], options))
        }
        (Some(weights), _) => {
            let full = weights.expand([view.outer, channels, view.inner]);
            Some(to_front(full.reshape(shape.clone())).reshape([samples, channels, inner]))
        }
    };
    let weights = weights.map(|weights| fill(weights).reshape([rounds, groups * channels, inner]));

    let split_operands = operands.ghosts(split, groups);
    let weighted = weights.is_some();
    let trained = split_operands.train_weighted(weights);
    let (output, moments) = (trained.output, trained.moments);
    let weight = weighted.then(|| {
        let [_, split] = moments.dims();
        moments.clone().slice([4..5, 0..split]).reshape([split])
    });
    let seen = observe(
        ghost.variance,
        moments,
        weight,
        groups,
        channels,
        samples * inner,
    );

    let output = output.reshape([rounds * groups, channels, inner]);
    let output = output.slice([0..samples, 0..channels, 0..inner]);
    let in_order: [usize; D] = std::array::from_fn(|axis| shape[order[axis] as usize]);
    let output = output.reshape(in_order);
    let mut back = [0; D];
    for (at, axis) in order.iter().enumerate() {
        back[*axis as usize] = at as isize;
    }
    let output = match permuted {
        true => output.permute(back),
        false => output,
    };
    (output, seen)
}

/// The statistics of `groups` ghost batches as those of one batch.
fn observe(
    variance_of: GhostVariance,
    moments: Tensor<2>,
    weight: Option<Tensor<1>>,
    groups: usize,
    channels: usize,
    values: usize,
) -> Observation {
    let by_group = |tensor: Tensor<1>| tensor.reshape([groups, channels]);
    let sum = |tensor: Tensor<2>| tensor.sum_dim(0).reshape([channels]);
    let [mean, variance] = rows(moments).map(by_group);
    let (share, total) = match weight {
        None => (mean.ones_like() / groups as f64, None),
        Some(weight) => {
            let weight = by_group(weight);
            let total = weight.clone().sum_dim(0);
            let share = weight / total.clone().clamp_min(f32::MIN_POSITIVE);
            (share, Some(total.reshape([channels])))
        }
    };
    let pooled_mean = sum(mean.clone() * share.clone());
    let within = sum(variance * share.clone());
    match variance_of {
        GhostVariance::Pooled => {
            let apart = mean - pooled_mean.clone().unsqueeze();
            let between = sum(apart.powi_scalar(2) * share);
            Observation {
                moments: packed(pooled_mean, within + between),
                values,
                weight: total,
                ghosts: None,
            }
        }
        GhostVariance::Mean => Observation {
            moments: packed(pooled_mean, within),
            values,
            weight: total,
            ghosts: Some(groups),
        },
    }
}

impl Ghost {
    /// The values per channel of the smallest ghost batch of an input.
    pub(crate) fn fewest_values(self, shape: &[usize], channel_axis: usize) -> usize {
        let samples = shape[usize::from(channel_axis == 0)];
        let values = shape.iter().product::<usize>() / shape[channel_axis];
        match samples {
            0 => 0,
            samples => {
                let inner = values / samples;
                samples / self.batches(samples, inner) * inner
            }
        }
    }

    /// The number of ghost batches that so many samples make, each with `inner` values a channel. A batch of
    /// one value would have no variance: rather than that, some have a sample more than `size`.
    fn batches(self, samples: usize, inner: usize) -> usize {
        let batches = samples.div_ceil(self.size);
        match inner {
            1 if self.size > 1 => batches.min((samples / 2).max(1)),
            _ => batches,
        }
    }
}
