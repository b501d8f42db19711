//! Which positions count: masks, sequence lengths, weights.

use burn::tensor::{Bool, Device, Tensor, TensorData};

use crate::BatchNormError;
use crate::checks::{cast, same_device};
use crate::config::MaskedOutput;
use crate::view::View;

/// Which positions of an input count in its statistics, and how much.
///
/// The statistics are those of the positions that it admits, and so are their gradients. What the others
/// hold, be it NaN, reaches no statistic and no gradient (Keras and Flax have masks, whose gradients are NaN there).
/// With a weight `w >= 0` for each position and `W = sum(w)` over a channel:
///
/// ```text
/// mean = sum(w * x) / W        variance = sum(w * (x - mean)^2) / W
/// ```
///
/// A channel of which nothing is admitted is normalized with mean 0 and variance 1, and leaves its running
/// statistics alone.
///
/// # Shapes
///
/// That of the input; or the same with length 1 on the channel axis; or without the channel axis; or the
/// first axes of that (`[N]` for whole samples, `[N, L]` for steps of a sequence).
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// use burn_batchnorm::{BatchNormConfig, Mask};
///
/// # let device = Device::default().autodiff();
/// let layer = BatchNormConfig::new(8).init(&device);
/// let x = Tensor::<3>::ones([2, 8, 10], &device); // two sequences of 10 steps, padded
/// let y = layer.forward_masked(x, &Mask::from_lengths(&[10, 7], 10, &device));
/// assert_eq!(y.dims(), [2, 8, 10]);
/// ```
#[derive(Debug, Clone)]
pub struct Mask {
    /// Flat, and not tracked, so that a mask from a training device goes with inference. (A tensor is large, and
    /// most passes have no mask.)
    weights: Box<Tensor<1>>,
    shape: Vec<usize>,
}

impl Mask {
    /// Admits the positions where `admitted` is true.
    pub fn new<const M: usize>(admitted: Tensor<M, Bool>) -> Self {
        Self::of(admitted.float().without_autodiff())
    }

    /// Positions by weight: a weight of 2 counts as two positions of the same value; 0 as none, and so do
    /// negative numbers, NaN and infinities. Not differentiated.
    ///
    /// A channel whose weights sum up to 1 or less has no more than a value, and leaves its running statistics
    /// alone. The unbiased variance is the biased one times `W / (W - 1)`, W being that sum, at most times 2.
    /// The sum over a channel must be finite in the type that is computed in: f32, but for inputs of f64.
    pub fn from_weights<const M: usize>(weights: Tensor<M>) -> Self {
        Self::of(finite(weights.without_autodiff()))
    }

    fn of<const M: usize>(weights: Tensor<M>) -> Self {
        let shape = weights.shape().to_vec();
        let length = shape.iter().product::<usize>();
        let weights = match length {
            // To Burn, a length of 0 in `reshape` says: as before.
            0 => Tensor::zeros([0], &weights.device()),
            length => weights.reshape([length]),
        };
        Self {
            weights: Box::new(weights),
            shape,
        }
    }

    /// Admits the first `lengths[n]` of the `longest` steps of sequence `n`: a mask of shape
    /// `[lengths.len(), longest]`.
    pub fn from_lengths(lengths: &[usize], longest: usize, device: &Device) -> Self {
        let admitted: Vec<bool> = lengths
            .iter()
            .flat_map(|length| (0..longest).map(move |step| step < *length))
            .collect();
        let data = TensorData::new(admitted, [lengths.len(), longest]);
        Self::new(Tensor::<2, Bool>::from_data(data, device))
    }

    /// For an input of `shape`: `[outer, 1 or channels, inner]`. None where there is nothing to mask.
    pub(crate) fn of_input(
        &self,
        shape: &[usize],
        view: View,
        device: &Device,
    ) -> Result<Option<Tensor<3>>, BatchNormError> {
        let View {
            axis,
            outer,
            channels,
            inner,
        } = view;
        same_device("mask", &self.weights.device(), device)?;
        let flat = self.weights.as_ref().clone();
        let mut single = shape.to_vec();
        single[axis] = 1;
        let mut positions = shape.to_vec();
        positions.remove(axis);
        // How many values follow one of the mask's.
        let (weighted, repeated) = if self.shape == shape {
            (channels, 1)
        } else if self.shape == single {
            (1, 1)
        } else if !self.shape.is_empty() && positions.starts_with(&self.shape) {
            (1, positions[self.shape.len()..].iter().product())
        } else {
            return Err(BatchNormError::Mask {
                input: shape.to_vec(),
                positions,
                got: self.shape.clone(),
            });
        };
        if view.is_empty() {
            return Ok(None);
        }
        let spread = match repeated {
            1 => flat,
            repeated => {
                let [given] = flat.dims();
                flat.reshape([given, 1])
                    .expand([given, repeated])
                    .flatten(0, 1)
            }
        };
        Ok(Some(spread.reshape([outer, weighted, inner])))
    }
}

/// Without infinite weights, which would make every share of a channel a NaN.
pub(crate) fn finite<const D: usize>(weights: Tensor<D>) -> Tensor<D> {
    let infinite = weights.clone().is_inf();
    weights.mask_fill(infinite, 0.0)
}

/// Where there is no weight. Not `weights <= 0`: a NaN is no weight either.
pub(crate) fn absent(weights: Tensor<3>) -> Tensor<3, Bool> {
    weights.greater_elem(0.0).bool_not()
}

/// What a masked pass returns: of what `passed` through, where that is asked for.
pub(crate) fn output<const D: usize>(
    policy: MaskedOutput,
    output: Tensor<D>,
    passed: Option<Tensor<D>>,
    weights: Tensor<3>,
) -> Tensor<D> {
    if policy == MaskedOutput::Normalize {
        return output;
    }
    let shape = output.shape();
    let [outer, _, inner] = weights.dims();
    let channels = shape.num_elements() / (outer * inner);
    let full = [outer, channels, inner];
    let absent = absent(weights).expand(full);
    let output = output.reshape(full);
    match passed {
        Some(input) => output
            .clone()
            .mask_where(absent, cast(input, output.dtype()).reshape(full)),
        None => output.mask_fill(absent, 0.0),
    }
    .reshape(shape)
}
