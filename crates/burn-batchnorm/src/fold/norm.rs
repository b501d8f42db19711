use burn::tensor::Tensor;

use super::affine::{Affine, parameter, plain};
use super::{FoldError, Folded, largest_difference, without_activation};
use crate::{Activation, BatchNorm};

/// Folds a batch norm into the batch norm before it: `second(first(x))`.
///
/// The result normalizes by the statistics of `first`, and has `gamma' = k * gamma` and
/// `beta' = k * beta + d`, with `k` and `d` of `second`. It has no activation: that of `second` is
/// [`Folded::activation`], as everywhere.
///
/// # Shapes
///
/// - `input`: an input of `first`
///
/// # Errors
///
/// If one of them trains or has no running statistics, `first` has an activation, or they differ in
/// channels, their axis or their device.
pub fn into_norm<const D: usize>(
    first: &BatchNorm,
    second: &BatchNorm,
    input: Option<Tensor<D>>,
) -> Result<Folded<BatchNorm>, FoldError> {
    let config = first.config();
    if config.activation != Activation::None {
        return Err(FoldError::Activation(config.activation));
    }
    let channels = config.num_features;
    let shape = match &input {
        Some(input) => input.shape().to_vec(),
        None => vec![channels; D],
    };
    let axis = first.channel_axis(&shape).map_err(FoldError::from)?;
    let (device, dtype) = (first.gamma.device(), first.gamma.dtype());
    let affine = |norm| Affine::new(norm, channels, axis, D, (&device, dtype));
    affine(first)?;
    let Affine { scale, shift } = affine(second)?;
    let wide = scale.dtype();

    let mut folded = first.clone();
    // Both may have been constants, which no record holds.
    folded.config.scale = true;
    folded.config.shift = true;
    let gamma = plain(first.gamma.val(), wide) * scale.clone();
    let beta = plain(first.beta.val(), wide) * scale + shift;
    folded.gamma = parameter(gamma, &first.gamma);
    folded.beta = parameter(beta, &first.beta);
    let difference = input.map(|input| {
        let expected = without_activation(second).forward(first.forward(input.clone()));
        largest_difference(folded.forward(input), expected)
    });
    Ok(Folded {
        layer: folded,
        activation: second.config().activation,
        difference,
    })
}
