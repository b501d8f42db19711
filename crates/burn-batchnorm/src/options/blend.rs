//! Statistics between those of the batch and the running ones.

use burn::tensor::Tensor;

use crate::checks::{cast, to_device};
use crate::statistics::{Values, packed};

/// `batch * center + (1 - batch) * running`, as a center. Differentiable in `center`.
pub(crate) fn center(center: Tensor<2>, running: &Values, batch: f64) -> Tensor<2> {
    let [_, channels] = center.dims();
    let here =
        |tensor: &Tensor<1>| cast(to_device(tensor.clone(), &center.device()), center.dtype());
    let running = packed(here(&running.mean), here(&running.variance));
    // Not `0 * running`: a weight of 0 takes nothing, not even a NaN.
    match batch {
        0.0 => running,
        1.0 => center,
        batch => center.slice([0..3, 0..channels]) * batch + running * (1.0 - batch),
    }
}
