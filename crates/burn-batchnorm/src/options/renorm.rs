//! Batch renormalization ([Ioffe 2017](https://arxiv.org/abs/1702.03275)).

use burn::tensor::Tensor;

use crate::checks::{cast, to_device};
use crate::config::{Reference, Renorm};
use crate::statistics::Values;

/// `r` and `d`, constants of shape `[channels]`: `gamma * (x_hat * r + d) + beta` is batch normalization
/// with `gamma * r` and `beta + gamma * d`.
pub(crate) fn correction(
    renorm: &Renorm,
    center: &Tensor<2>,
    running: &Values,
    epsilon: f64,
) -> [Tensor<1>; 2] {
    let [_, channels] = center.dims();
    let center = center.clone().detach();
    let row = |index: usize| {
        center
            .clone()
            .slice([index..index + 1, 0..channels])
            .reshape([channels])
    };
    let here =
        |tensor: &Tensor<1>| cast(to_device(tensor.clone(), &center.device()), center.dtype());
    let stddev = |variance: Tensor<1>| (variance + epsilon).sqrt();

    let (mean, reference) = match (renorm.reference, &running.renorm) {
        (Reference::Separate { .. }, Some(separate)) => {
            let reference = here(&separate.renorm_stddev).clamp_min(epsilon.sqrt());
            (here(&separate.renorm_mean), reference)
        }
        _ => (here(&running.mean), stddev(here(&running.variance))),
    };
    let r = stddev(row(2)) / reference.clone();
    // Both parts of the batch's mean: it may be large against the deviation.
    let d = ((row(0) - mean) + row(1)) / reference;

    let (r_max, d_max) = (
        renorm.r_max.at(running.batches),
        renorm.d_max.at(running.batches),
    );
    let r_min = renorm.r_min.or(r_max.map(f64::recip));
    let r = match r_min {
        Some(r_min) => r.clamp_min(r_min),
        None => r,
    };
    let r = match r_max {
        Some(r_max) => r.clamp_max(r_max),
        None => r,
    };
    let d = match d_max {
        Some(d_max) => d.clamp(-d_max, d_max),
        None => d,
    };
    [r, d]
}
