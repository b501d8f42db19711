//! What an operation reads, and the call of it.
//!
//! [`Operands::new`] makes every check: what is wrong is refused there, on the host, before anything is
//! computed or any state changes.

use burn::backend::{Dispatch, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor};

use crate::checks::{
    cast, computable, float, has_kernels, is_fused, output_dtype, same_device, supported,
    to_device, view,
};
use crate::config::validate_epsilon;
#[cfg(any(feature = "host", feature = "cube"))]
use crate::ops::BatchNormOps;
use crate::ops::composed::{self, compute_dtype};
use crate::ops::{Maybe, Moments, Pass, Running};
use crate::options::mask::finite;
use crate::statistics::{Update, Values};
use crate::view::View;
use crate::{Activation, BatchNormError};

/// What follows the normalization: `activation(normalized + residual)`.
#[derive(Debug, Clone, Default)]
pub struct Epilogue<const D: usize> {
    /// Applied last.
    pub activation: Activation,
    /// Shape and type of the input; added before the activation.
    pub residual: Option<Tensor<D>>,
}

/// Gamma or beta, shape `[channels]`.
pub(crate) enum Parameter {
    Learned(Tensor<1>),
    /// Goes with inputs of every type.
    Constant(Tensor<1>),
}

/// The tensors of one pass. Those per channel have the type that is computed in.
#[derive(Debug, Clone)]
pub(crate) struct Operands<const D: usize> {
    input: Tensor<D>,
    /// That of the input.
    device: Device,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    residual: Option<Tensor<D>>,
    pass: Pass,
    /// The type of the output.
    dtype: DType,
    fused: bool,
}

/// What a training pass made.
pub(crate) struct Trained<const D: usize> {
    pub(crate) output: Tensor<D>,
    /// Of the batch, `[4, channels]`: mean, what rounding took from it, biased variance, inverse
    /// standard deviation. Not tracked by autodiff.
    pub(crate) moments: Tensor<2>,
    /// The running mean and variance, updated, if there were any and in the type that is computed in.
    pub(crate) running: Option<[Tensor<1>; 2]>,
}

impl<const D: usize> Operands<D> {
    pub(crate) fn new(
        input: Tensor<D>,
        [gamma, beta]: [Parameter; 2],
        epilogue: Epilogue<D>,
        epsilon: f64,
        channel_axis: usize,
    ) -> Result<Self, BatchNormError> {
        let dtype = output_dtype(input.dtype());
        let input = supported(input)?;
        let (shape, device) = (input.shape(), input.device());
        let view = view(&shape, channel_axis)?;
        let computed = compute_dtype(input.dtype());
        validate_epsilon(epsilon, computed)?;
        epilogue.activation.validate()?;
        computable(epilogue.activation, computed, &device)?;

        let mut autodiff = device.is_autodiff();
        let residual = match epilogue.residual {
            None => None,
            Some(residual) => {
                if residual.shape() != shape || output_dtype(residual.dtype()) != dtype {
                    return Err(BatchNormError::Residual {
                        expected: shape.to_vec(),
                        dtype,
                        got: residual.shape().to_vec(),
                        got_dtype: residual.dtype(),
                    });
                }
                let residual_device = residual.device();
                same_device("residual", &residual_device, &device)?;
                autodiff |= residual_device.is_autodiff();
                Some(float(residual))
            }
        };
        let channels = shape[channel_axis];
        let mut parameter = |name, parameter: Parameter| {
            let (tensor, learned) = match parameter {
                Parameter::Learned(tensor) => (float(tensor), true),
                Parameter::Constant(tensor) => (tensor, false),
            };
            let [got] = tensor.dims();
            if got != channels {
                return Err(BatchNormError::Parameter {
                    name,
                    expected: channels,
                    got,
                });
            }
            if learned && tensor.dtype() != input.dtype() && tensor.dtype() != computed {
                return Err(BatchNormError::DType {
                    input: input.dtype(),
                    name,
                    parameter: tensor.dtype(),
                });
            }
            let parameter_device = tensor.device();
            same_device(name, &parameter_device, &device)?;
            autodiff |= parameter_device.is_autodiff();
            Ok(cast(tensor, computed))
        };
        let (gamma, beta) = (parameter("gamma", gamma)?, parameter("beta", beta)?);
        Ok(Self {
            gamma,
            beta,
            residual,
            pass: Pass {
                view,
                activation: epilogue.activation,
                epsilon,
                from_output: false,
            },
            dtype,
            fused: has_kernels(&device, autodiff),
            input,
            device,
        })
    }

    /// Lets the backward pass of [`train`](Self::train) work from the output, where that gives the same
    /// gradients: in the type that is computed in, without a residual, and where no gamma is so small
    /// against its beta that rounding of the output would reach them. Waits for the device, to see that.
    pub(crate) fn keeping_output(mut self) -> Self {
        let exact = || {
            let numbers = |tensor: &Tensor<1>| tensor.to_data().iter::<f64>().collect::<Vec<_>>();
            let (gamma, beta) = (numbers(&self.gamma), numbers(&self.beta));
            let large = |(gamma, beta): (f64, &f64)| gamma.abs() >= (beta.abs() / 30.0).max(1e-10);
            gamma.into_iter().zip(&beta).all(large)
        };
        let wide = self.input.dtype() == self.gamma.dtype();
        self.pass.from_output =
            self.fused && wide && self.residual.is_none() && self.device.is_autodiff() && exact();
        self
    }

    /// Normalizes by the statistics of the input, which enter the running ones where there are any.
    pub(crate) fn train(self, running: Option<(&Values, Update)>) -> Trained<D> {
        self.train_with(None, running)
    }

    /// As [`train`](Self::train), of weighted positions: moments of `[5, channels]`, of which the last row is
    /// the sum of the weights. `[outer, 1 or channels, inner]`.
    pub(crate) fn train_weighted(self, weights: Option<Tensor<3>>) -> Trained<D> {
        self.train_with(weights, None)
    }

    fn train_with(
        self,
        weights: Option<Tensor<3>>,
        running: Option<(&Values, Update)>,
    ) -> Trained<D> {
        let computed = self.gamma.dtype();
        // The kernels blend in the type that they compute in.
        let inside = running.filter(|(values, _)| {
            values.mean.dtype() == computed && values.variance.dtype() == computed
        });
        let untracked = Update {
            keep: 1.0,
            add_mean: 0.0,
            add_variance: 0.0,
        };
        let update = inside.map_or(untracked, |(_, update)| update);
        let old = match inside {
            None => Running::Untracked,
            Some((values, _)) => {
                let here =
                    |tensor: &Tensor<1>| to_device(tensor.clone(), &self.device).into_dispatch();
                Running::Tracked(here(&values.mean), here(&values.variance))
            }
        };
        let train = match self.fused {
            #[cfg(any(feature = "host", feature = "cube"))]
            true => Dispatch::train,
            #[allow(clippy::match_single_binding, reason = "without any kernels")]
            _ => composed::train::<Dispatch>,
        };
        let (dtype, x, gamma, beta, residual, pass) = self.into_dispatch();
        let (y, moments, mean, variance) =
            train(x, gamma, beta, residual, maybe(weights), old, pass, update);
        let moments = Tensor::<2>::from_dispatch(moments).without_autodiff();
        let statistic = |tensor| Tensor::<1>::from_dispatch(tensor).without_autodiff();
        let running = inside.map(|_| [statistic(mean), statistic(variance)]);
        Trained {
            output: cast(Tensor::from_dispatch(y), dtype),
            moments,
            running,
        }
    }

    /// The statistics of the input, weighted where there are weights, as [`moments`] returns them.
    pub(crate) fn moments(&self, weights: Option<Tensor<3>>) -> Tensor<2> {
        center(self.input.clone(), self.pass.view, weights, self.fused)
    }

    /// Normalizes by constants, on whatever device they are. `weights` are as for
    /// [`train_weighted`](Self::train_weighted).
    pub(crate) fn normalize_by(self, statistics: &Values, weights: Option<Tensor<3>>) -> Tensor<D> {
        let dtype = self.gamma.dtype();
        let here = |tensor: &Tensor<1>| {
            cast(to_device(tensor.clone(), &self.device), dtype)
                .without_autodiff()
                .into_dispatch()
        };
        let moments = Moments::Running(here(&statistics.mean), here(&statistics.variance));
        self.normalize(moments, weights)
    }

    /// Whether a center has the shape and the place of one of these operands.
    pub(crate) fn check_center(&self, center: &Tensor<2>) -> Result<(), BatchNormError> {
        let [rows, got] = center.dims();
        let channels = self.pass.view.channels;
        if got != channels || !(3..=4).contains(&rows) {
            return Err(BatchNormError::Center {
                channels,
                got: vec![rows, got],
            });
        }
        same_device("center", &center.device(), &self.device)
    }

    /// Normalizes by variables, as [`moments`] returns them.
    pub(crate) fn normalize_by_center(
        self,
        center: Tensor<2>,
        weights: Option<Tensor<3>>,
    ) -> Tensor<D> {
        let channels = self.pass.view.channels;
        let center = cast(center.slice([0..3, 0..channels]), self.gamma.dtype());
        let fused = self.fused && is_fused(&center.device());
        let operands = Self { fused, ..self };
        operands.normalize(Moments::Center(center.into_dispatch()), weights)
    }

    pub(crate) fn input(&self) -> &Tensor<D> {
        &self.input
    }

    pub(crate) fn view(&self) -> View {
        self.pass.view
    }

    pub(crate) fn epsilon(&self) -> f64 {
        self.pass.epsilon
    }

    /// The number of values per channel.
    pub(crate) fn values(&self) -> usize {
        self.pass.view.outer * self.pass.view.inner
    }

    /// The type that is computed in.
    pub(crate) fn computed(&self) -> DType {
        self.gamma.dtype()
    }

    /// The same with another input of its shape, type and place.
    pub(crate) fn map_input(self, map: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Self {
        Self {
            input: map(self.input),
            ..self
        }
    }

    /// With `gamma * r` and `beta + gamma * d`.
    pub(crate) fn corrected(self, [r, d]: [Tensor<1>; 2]) -> Self {
        let shift = self.gamma.clone() * d;
        Self {
            gamma: self.gamma * r,
            beta: self.beta + shift,
            ..self
        }
    }

    /// Of `groups` times the channels, where `split` makes `[outer, groups * channels, inner]` of what has
    /// the input's shape.
    pub(crate) fn ghosts(
        self,
        split: impl Fn(Tensor<D>) -> Tensor<3>,
        groups: usize,
    ) -> Operands<3> {
        let channels = self.pass.view.channels;
        let repeated = |vector: Tensor<1>| {
            let rows = vector.unsqueeze::<2>().expand([groups, channels]);
            rows.reshape([groups * channels])
        };
        let input = split(self.input);
        Operands {
            gamma: repeated(self.gamma),
            beta: repeated(self.beta),
            residual: self.residual.map(split),
            pass: Pass {
                view: View::new(&input.shape(), 1),
                ..self.pass
            },
            dtype: self.dtype,
            fused: self.fused,
            device: self.device,
            input,
        }
    }

    fn normalize(self, moments: Moments<Dispatch>, weights: Option<Tensor<3>>) -> Tensor<D> {
        let normalize = match self.fused {
            #[cfg(any(feature = "host", feature = "cube"))]
            true => Dispatch::normalize,
            #[allow(clippy::match_single_binding, reason = "without any kernels")]
            _ => composed::normalize::<Dispatch>,
        };
        let (dtype, x, gamma, beta, residual, pass) = self.into_dispatch();
        let y = normalize(x, moments, gamma, beta, residual, maybe(weights), pass);
        cast(Tensor::from_dispatch(y), dtype)
    }

    #[allow(clippy::type_complexity)]
    fn into_dispatch(
        self,
    ) -> (
        DType,
        FloatTensor<Dispatch>,
        FloatTensor<Dispatch>,
        FloatTensor<Dispatch>,
        Maybe<Dispatch>,
        Pass,
    ) {
        let residual = maybe(self.residual);
        let (x, gamma, beta) = (
            self.input.into_dispatch(),
            self.gamma.into_dispatch(),
            self.beta.into_dispatch(),
        );
        (self.dtype, x, gamma, beta, residual, self.pass)
    }
}

fn maybe<const D: usize>(tensor: Option<Tensor<D>>) -> Maybe<Dispatch> {
    match tensor {
        Some(tensor) => Maybe::Present(tensor.into_dispatch()),
        None => Maybe::Absent,
    }
}

/// The statistics of an input: `[3, channels]`, or `[4, channels]` of weighted positions.
pub(crate) fn moments<const D: usize>(
    input: Tensor<D>,
    channel_axis: usize,
    weights: Option<Tensor<D>>,
) -> Result<Tensor<2>, BatchNormError> {
    let input = supported(input)?;
    let (shape, device) = (input.shape(), input.device());
    let view = view(&shape, channel_axis)?;
    let weights = match weights {
        None => None,
        Some(weights) => {
            let weighted = weights.shape()[channel_axis];
            let mut given = shape.clone();
            given[channel_axis] = weighted;
            if weights.shape() != given || ![1, view.channels].contains(&weighted) {
                return Err(BatchNormError::Weights {
                    expected: shape.to_vec(),
                    got: weights.shape().to_vec(),
                });
            }
            same_device("weights", &weights.device(), &device)?;
            let weights = finite(float(weights).detach());
            Some(weights.reshape([view.outer, weighted, view.inner]))
        }
    };
    Ok(center(input, view, weights, is_fused(&device)))
}

fn center<const D: usize>(
    input: Tensor<D>,
    view: View,
    weights: Option<Tensor<3>>,
    fused: bool,
) -> Tensor<2> {
    if let Some(weights) = weights {
        let (x, weights) = (input.into_dispatch(), weights.detach().into_dispatch());
        let moments = composed::weighted_moments::<Dispatch>(x, weights, view);
        return Tensor::from_dispatch(moments);
    }
    let moments = match fused {
        #[cfg(any(feature = "host", feature = "cube"))]
        true => Dispatch::moments,
        #[allow(clippy::match_single_binding, reason = "without any kernels")]
        _ => composed::moments::<Dispatch>,
    };
    Tensor::from_dispatch(moments(input.into_dispatch(), view))
}
