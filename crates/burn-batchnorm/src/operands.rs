//! What an operation reads, checked: everything that could go wrong is refused here, on the host,
//! before anything is computed or any state changes.

use burn::backend::{Dispatch, DispatchDevice, tensor::FloatTensor};
use burn::tensor::{DType, Device, Shape, Tensor};

#[cfg(feature = "cube")]
use crate::backends::cube::largest_tensor;
use crate::config::validate_epsilon;
#[cfg(any(feature = "host", feature = "cube"))]
use crate::ops::BatchNormOps;
use crate::ops::composed::{self, compute_dtype};
use crate::ops::{Maybe, Moments, Pass, Running};
use crate::statistics::{Update, Values, rows};
use crate::view::View;
use crate::{Activation, BatchNormError, options};

/// What follows the normalization: `activation(normalized + residual)`.
#[derive(Debug, Clone, Default)]
pub struct Epilogue<const D: usize> {
    /// Applied last.
    pub activation: Activation,
    /// Shape and type of the input; added before the activation.
    pub residual: Option<Tensor<D>>,
}

/// The tensors of one pass. Those per channel have the type that is computed in.
#[derive(Debug)]
pub(crate) struct Operands<const D: usize> {
    input: Tensor<D>,
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
    /// The running mean and variance, updated, if there were any.
    pub(crate) running: Option<[Tensor<1>; 2]>,
}

impl<const D: usize> Operands<D> {
    pub(crate) fn new(
        input: Tensor<D>,
        [gamma, beta]: [Tensor<1>; 2],
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
                same_device("residual", &residual.device(), &device)?;
                Some(float(residual))
            }
        };
        let channels = shape[channel_axis];
        let parameter = |name, tensor: Tensor<1>| {
            let tensor = float(tensor);
            let [got] = tensor.dims();
            if got != channels {
                return Err(BatchNormError::Parameter {
                    name,
                    expected: channels,
                    got,
                });
            }
            if tensor.dtype() != input.dtype() && tensor.dtype() != computed {
                return Err(BatchNormError::DType {
                    input: input.dtype(),
                    name,
                    parameter: tensor.dtype(),
                });
            }
            same_device(name, &tensor.device(), &device)?;
            Ok(cast(tensor, computed))
        };
        let (gamma, beta) = (parameter("gamma", gamma)?, parameter("beta", beta)?);
        let tracked = |tensor: &Tensor<1>| tensor.device().is_autodiff();
        let autodiff = device.is_autodiff()
            || tracked(&gamma)
            || tracked(&beta)
            || residual
                .as_ref()
                .is_some_and(|it| it.device().is_autodiff());
        Ok(Self {
            gamma,
            beta,
            residual,
            pass: Pass {
                view,
                activation: epilogue.activation,
                epsilon,
            },
            dtype,
            fused: has_kernels(&device) && (cfg!(feature = "autodiff") || !autodiff),
            input,
        })
    }

    /// Normalizes by the statistics of the input, which enter the running ones where there are any.
    pub(crate) fn train(self, running: Option<(&Values, Update)>) -> Trained<D> {
        let computed = self.gamma.dtype();
        // The kernels blend in the type that they compute in; statistics of another are blended here.
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
                let device = self.input.device();
                let here = |tensor: &Tensor<1>| to_device(tensor.clone(), &device).into_dispatch();
                Running::Tracked(here(&values.mean), here(&values.variance))
            }
        };
        let fused = self.fused;
        let (dtype, x, gamma, beta, residual, pass) = self.into_dispatch();
        let (y, moments, mean, variance) = match fused {
            #[cfg(any(feature = "host", feature = "cube"))]
            true => Dispatch::train(x, gamma, beta, residual, old, pass, update),
            _ => composed::train::<Dispatch>(x, gamma, beta, residual, old, pass, update),
        };
        let moments = Tensor::<2>::from_dispatch(moments).without_autodiff();
        let statistic = |tensor| Tensor::<1>::from_dispatch(tensor).without_autodiff();
        let running = match (inside, running) {
            (Some(_), _) => Some([statistic(mean), statistic(variance)]),
            (None, Some((values, update))) => {
                let [mean, variance] = rows(moments.clone());
                let values = values.after(update, mean, variance);
                Some([values.mean, values.variance])
            }
            (None, None) => None,
        };
        Trained {
            output: cast(Tensor::from_dispatch(y), dtype),
            moments,
            running,
        }
    }

    /// Normalizes by constants, mean and variance of shape `[channels]` on any device.
    pub(crate) fn normalize_by(self, [mean, variance]: [Tensor<1>; 2]) -> Tensor<D> {
        let device = self.input.device();
        let dtype = self.gamma.dtype();
        let here = |tensor: Tensor<1>| {
            cast(to_device(tensor, &device), dtype)
                .without_autodiff()
                .into_dispatch()
        };
        let moments = Moments::Running(here(mean), here(variance));
        self.normalize(moments)
    }

    /// Normalizes by variables, as [`moments`] returns them.
    pub(crate) fn normalize_by_center(
        self,
        center: Tensor<2>,
    ) -> Result<Tensor<D>, BatchNormError> {
        let [rows, got] = center.dims();
        let channels = self.pass.view.channels;
        if got != channels || !(3..=4).contains(&rows) {
            return Err(BatchNormError::Center {
                channels,
                got: vec![rows, got],
            });
        }
        same_device("center", &center.device(), &self.input.device())?;
        let center = cast(center.slice([0..3, 0..channels]), self.gamma.dtype());
        let fused = self.fused && (cfg!(feature = "autodiff") || !center.device().is_autodiff());
        let operands = Self { fused, ..self };
        Ok(operands.normalize(Moments::Center(center.into_dispatch())))
    }

    fn normalize(self, moments: Moments<Dispatch>) -> Tensor<D> {
        let fused = self.fused;
        let (dtype, x, gamma, beta, residual, pass) = self.into_dispatch();
        let y = match fused {
            #[cfg(any(feature = "host", feature = "cube"))]
            true => Dispatch::normalize(x, moments, gamma, beta, residual, pass),
            _ => composed::normalize::<Dispatch>(x, moments, gamma, beta, residual, pass),
        };
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
        let residual = match self.residual {
            Some(residual) => Maybe::Present(residual.into_dispatch()),
            None => Maybe::Absent,
        };
        let (x, gamma, beta) = (
            self.input.into_dispatch(),
            self.gamma.into_dispatch(),
            self.beta.into_dispatch(),
        );
        (self.dtype, x, gamma, beta, residual, self.pass)
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
    if let Some(weights) = weights {
        let mut single = shape.clone();
        single[channel_axis] = 1;
        if weights.shape() != shape && weights.shape() != single {
            return Err(BatchNormError::Weights {
                expected: shape.to_vec(),
                got: weights.shape().to_vec(),
            });
        }
        same_device("weights", &weights.device(), &device)?;
        return Ok(options::weights::moments(input, weights, view));
    }
    let x = input.into_dispatch();
    Ok(Tensor::from_dispatch(match is_fused(&device) {
        #[cfg(any(feature = "host", feature = "cube"))]
        true => Dispatch::moments(x, view),
        _ => composed::moments::<Dispatch>(x, view),
    }))
}

fn view(shape: &Shape, channel_axis: usize) -> Result<View, BatchNormError> {
    let rank = shape.num_dims();
    match (rank, channel_axis) {
        (0 | 1, _) => Err(BatchNormError::Rank { rank }),
        (rank, axis) if axis >= rank => Err(BatchNormError::ChannelAxis {
            axis: axis as isize,
            rank,
        }),
        (_, axis) => Ok(View::new(shape, axis)),
    }
}

/// Whether this crate has fused kernels for the device: a matter of the crate's features.
pub fn is_fused(device: &Device) -> bool {
    has_kernels(device) && (cfg!(feature = "autodiff") || !device.is_autodiff())
}

/// Whether the backend of a device is one that this build has kernels for.
fn has_kernels(device: &Device) -> bool {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        #[allow(
            unreachable_patterns,
            reason = "which devices exist is up to Burn's features"
        )]
        _ => false,
    }
}

/// The input in a type that its device computes with, if it is not too large for it.
fn supported<const D: usize>(input: Tensor<D>) -> Result<Tensor<D>, BatchNormError> {
    let input = float(input);
    let dtype = input.dtype();
    #[cfg(feature = "cube")]
    {
        let bytes = (input.shape().num_elements() * dtype.size()) as u64;
        // WebGPU guarantees 128 MiB, so most inputs need not ask.
        if bytes > 1 << 27
            && let Some(limit) = largest_tensor(&input.device())
            && bytes > limit
        {
            return Err(BatchNormError::TooLarge {
                bytes,
                limit,
                device: format!("{:?}", input.device().inner()),
            });
        }
    }
    if dtype != DType::F32 && !input.device().supports_dtype(dtype) {
        return Err(BatchNormError::Unsupported {
            dtype,
            device: format!("{:?}", input.device().inner()),
        });
    }
    Ok(input)
}

fn same_device(name: &'static str, got: &Device, expected: &Device) -> Result<(), BatchNormError> {
    match got == expected {
        true => Ok(()),
        false => Err(BatchNormError::Device {
            name,
            expected: format!("{:?}", expected.clone().inner()),
            got: format!("{:?}", got.clone().inner()),
        }),
    }
}

/// A tensor of plain floating-point values: quantized ones are dequantized, and Flex32, which is f32
/// that may be computed with less precision, is taken for f32.
fn float<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::QFloat(_) => tensor.dequantize(),
        DType::Flex32 => tensor.cast(DType::F32),
        _ => tensor,
    }
}

fn output_dtype(dtype: DType) -> DType {
    match dtype {
        DType::QFloat(_) => DType::F32,
        dtype => dtype,
    }
}

/// `cast`, but nothing at all where the type is the same.
pub(crate) fn cast<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    match tensor.dtype() == dtype {
        true => tensor,
        false => tensor.cast(dtype),
    }
}

fn to_device(tensor: Tensor<1>, device: &Device) -> Tensor<1> {
    match &tensor.device() == device {
        true => tensor,
        false => tensor.to_device(&device.clone().inner()),
    }
}
