//! Statistics of weighted positions.

use burn::tensor::{Bool, Tensor};

use crate::checks::cast;
use crate::ops::composed::compute_dtype;
use crate::view::View;

/// Where there is no weight. Not `weights <= 0`: a NaN is no weight either.
pub(crate) fn absent(weights: Tensor<3>) -> Tensor<3, Bool> {
    weights.greater_elem(0.0).bool_not()
}

/// The center of an input, and the sum of its weights as a fourth row: `[4, channels]`.
///
/// `weights` are `[outer, 1 or channels, inner]`. What has no weight is replaced before anything is
/// computed, since a product with 0 would keep a NaN.
pub(crate) fn moments<const D: usize>(
    input: Tensor<D>,
    weights: Tensor<3>,
    view: View,
) -> Tensor<2> {
    let View {
        outer,
        channels,
        inner,
        ..
    } = view;
    let dtype = compute_dtype(input.dtype());
    if view.is_empty() {
        return Tensor::zeros([4, channels], (&input.device(), dtype));
    }
    let x = cast(input, dtype).reshape([outer, channels, inner]);
    let weights = cast(weights.detach(), dtype).expand([outer, channels, inner]);
    let absent = absent(weights.clone());
    let weights = weights.mask_fill(absent.clone(), 0.0);

    let sum = |tensor: Tensor<3>| tensor.sum_dim(0).sum_dim(2);
    let total = sum(weights.clone());
    let divisor = total.clone().clamp_min(f32::MIN_POSITIVE);
    let average = |tensor: Tensor<3>| sum(tensor * weights.clone()) / divisor.clone();

    let x = x.mask_fill(absent.clone(), 0.0);
    let about = average(x.clone().detach());
    let centred = (x - about.clone()).mask_fill(absent, 0.0);
    let rest = average(centred.clone());
    let centred = centred - rest.clone();
    let variance = average(centred.clone() * centred);
    let mean = about.clone() + rest.clone();
    // A constant: the gradient of the mean is that of the first row.
    let low = (rest - (mean.clone() - about)).detach();

    let row = |tensor: Tensor<3>| tensor.reshape([1, channels]);
    Tensor::cat(vec![row(mean), row(low), row(variance), row(total)], 0)
}
