//! What the CPU backends share: a tensor in host memory, and the kernels of batchnorm-cpu on it.
//!
//! Memory is the cost of batch norm, and memory that was never touched before costs a page fault
//! every 4 KiB on top. So a result goes into its input's buffer where nobody else holds it: `y` into
//! `x` in inference, `dx` into the gradient of the output. Otherwise it goes into memory that is
//! not zeroed first. A strided input is copied once.

use batchnorm_cpu::{
    Accum, Affine, BatchStatistics, Element, Epilogue, Error, Gradients, Layout, Normalization,
    Output, Saved, Stream, backward, backward_sums, normalize, train_forward,
};
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Element as BurnElement, Shape};
use bytemuck::Pod;

use super::memory::reserve;
use crate::Activation;
use crate::extension::{Pass, Statistics, TrainParams, Wanted};
use crate::view::View;

/// An element that both worlds know.
pub(super) trait HostElement: Element<Accum: HostAccum> + BurnElement + Pod {}
impl<E: Element<Accum: HostAccum> + BurnElement + Pod> HostElement for E {}

pub(super) trait HostAccum: Accum + BurnElement + Pod {}
impl<A: Accum + BurnElement + Pod> HostAccum for A {}

/// A tensor whose values are in host memory.
pub(super) trait HostTensor: TensorMetadata + Sized {
    /// The same values in row-major order, copied only where they are not.
    fn into_contiguous(self) -> Self;
    /// The values of a contiguous tensor of type `E`.
    fn values<E: HostElementBase>(&self) -> &[E];
    /// The values, if the tensor is contiguous and nobody else holds them.
    fn values_mut<E: HostElementBase>(&mut self) -> Option<&mut [E]>;
    /// A tensor that takes over the memory of `values`.
    fn from_values<E: HostElementBase>(values: Vec<E>, shape: Shape) -> Self;
}

/// What a tensor needs to know of its elements.
pub(super) trait HostElementBase: BurnElement + Pod {}
impl<E: BurnElement + Pod> HostElementBase for E {}

/// Runs `$run` with `$E` as the element type that the tensor has.
macro_rules! with_element {
    ($tensor:expr, $E:ident => $run:expr) => {
        match $tensor.dtype() {
            DType::F32 => {
                type $E = f32;
                $run
            }
            DType::F64 => {
                type $E = f64;
                $run
            }
            DType::F16 => {
                type $E = half::f16;
                $run
            }
            DType::BF16 => {
                type $E = half::bf16;
                $run
            }
            dtype => panic!("batch norm expects a floating-point tensor, got {dtype:?}"),
        }
    };
}

/// The six results of a training forward pass.
pub(super) type Trained<T> = (T, T, T, T, T, T);

pub(super) fn train<T: HostTensor>(
    x: T,
    [gamma, beta]: [T; 2],
    residual: T,
    running: [T; 2],
    pass: Pass,
    params: TrainParams,
) -> Trained<T> {
    with_element!(x, E => train_as::<T, E>(x, [gamma, beta], residual, running, pass, params))
}

fn train_as<T: HostTensor, E: HostElement>(
    x: T,
    affine: [T; 2],
    residual: T,
    running: [T; 2],
    pass: Pass,
    params: TrainParams,
) -> Trained<T> {
    let [gamma, beta] = affine.map(T::into_contiguous);
    let residual = pass.residual.then(|| residual.into_contiguous());
    let channels = pass.view.channels;
    let [mut mean, mut variance] = [(); 2].map(|_| zeros::<E>(channels));
    // The mean, what rounding took from it, the inverse standard deviation.
    let mut saved = zeros::<E>(3 * channels);
    let (saved_mean, rest) = saved.split_at_mut(channels);
    let (mean_low, inv_std) = rest.split_at_mut(channels);

    let affine = Affine {
        gamma: gamma.values(),
        beta: beta.values(),
    };
    let out = BatchStatistics {
        mean: &mut mean,
        mean_low: Some(mean_low),
        variance: &mut variance,
        inv_std,
    };
    let y = elementwise::<T, E>(x, |stream| {
        train_forward(
            layout(pass),
            stream,
            affine,
            params.epsilon,
            epilogue(pass, residual.as_ref()),
            out,
        )
    });

    saved_mean.copy_from_slice(&mean);

    let [running_mean, running_var] = running.map(T::into_contiguous);
    let factor = params.factor;
    let blended = [
        blend::<E>(running_mean.values(), &mean, factor, 1.0),
        blend::<E>(running_var.values(), &variance, factor, params.correction),
    ];
    let [running_mean, running_var] = blended.map(per_channel::<T, E>);
    (
        y,
        per_channel::<T, E>(mean),
        per_channel::<T, E>(variance),
        T::from_values(saved, Shape::new([3, channels])),
        running_mean,
        running_var,
    )
}

pub(super) fn normalize_values<T: HostTensor>(x: T, vectors: [T; 3], residual: T, pass: Pass) -> T {
    let vectors = vectors.map(T::into_contiguous);
    let residual = pass.residual.then(|| residual.into_contiguous());
    with_element!(x, E => {
        let [mean, scale, shift] = vectors.each_ref().map(T::values);
        let params = Normalization { mean, scale, shift };
        elementwise::<T, E>(x, |stream| {
            normalize(layout(pass), stream, params, epilogue(pass, residual.as_ref()))
        })
    })
}

/// The tensors that a backward pass reads besides the gradient.
pub(super) struct Kept<T> {
    pub x: T,
    pub scale: T,
    pub shift: T,
    pub residual: T,
    pub saved: T,
}

/// The gradients of x, scale, shift and residual.
pub(super) fn gradients<T: HostTensor>(
    kept: Kept<T>,
    output_grad: T,
    statistics: Statistics,
    pass: Pass,
    wanted: Wanted,
) -> (T, T, T, T) {
    with_element!(kept.x, E => gradients_as::<T, E>(kept, output_grad, statistics, pass, wanted))
}

fn gradients_as<T: HostTensor, E: HostElement>(
    kept: Kept<T>,
    output_grad: T,
    statistics: Statistics,
    pass: Pass,
    wanted: Wanted,
) -> (T, T, T, T) {
    let Kept {
        x,
        scale,
        shift,
        residual,
        saved,
    } = kept;
    let channels = pass.view.channels;
    let [x, scale, shift, saved] = [x, scale, shift, saved].map(T::into_contiguous);
    // The sign of the activation's argument needs the residual, and nothing else does.
    let activated = pass.activation != Activation::None;
    let residual = (pass.residual && activated).then(|| residual.into_contiguous());
    // The scale of given statistics is gamma * inv_std: with an inverse deviation of 1 the gradient
    // for gamma is that for the scale.
    let ones;
    let (mean, mean_low, inv_std) = match statistics {
        Statistics::Given => {
            ones = vec![E::Accum::from_f64(1.0); channels];
            (saved.values(), None, &ones[..])
        }
        Statistics::Batch => {
            let (mean, rest) = saved.values().split_at(channels);
            let (mean_low, inv_std) = rest.split_at(channels);
            (mean, Some(mean_low), inv_std)
        }
    };
    let saved = Saved {
        gamma: scale.values(),
        beta: shift.values(),
        mean,
        mean_low,
        inv_std,
        statistics: match statistics {
            Statistics::Batch => batchnorm_cpu::Statistics::OfBatch,
            Statistics::Given => batchnorm_cpu::Statistics::Constant,
        },
    };

    let [mut scale_grad, mut shift_grad] = [(); 2].map(|_| zeros::<E>(channels));
    let shape = output_grad.shape();
    let epilogue = epilogue(pass, residual.as_ref());
    let (input_grad, residual_grad) = if wanted.input || (wanted.residual && activated) {
        let mut fresh = Vec::new();
        // Without an activation the residual's gradient is that of the output.
        let copied = (wanted.residual && !activated).then(|| output_grad.clone());
        let written = wanted.residual && activated;
        let elements = shape.num_elements();
        let residual = written.then(|| Output::from(reserve(&mut fresh, elements)));
        let out = Gradients {
            residual,
            gamma: wanted.scale.then_some(scale_grad.as_mut_slice()),
            beta: wanted.shift.then_some(shift_grad.as_mut_slice()),
        };
        let input_grad = elementwise::<T, E>(output_grad, |stream| {
            backward(layout(pass), x.values(), stream, saved, epilogue, out)
        });
        let residual_grad = match (copied, written) {
            (Some(copied), _) => copied,
            (None, false) => input_grad.clone(),
            (None, true) => {
                // SAFETY: the kernel has written all elements of the output that `reserve` made in
                // this vector, or `succeed` within `elementwise` has panicked.
                unsafe { fresh.set_len(elements) };
                T::from_values(fresh, shape)
            }
        };
        (input_grad, residual_grad)
    } else {
        let output_grad = output_grad.into_contiguous();
        let sums = (&mut scale_grad[..], &mut shift_grad[..]);
        parameter_gradients::<E>(
            x.values(),
            output_grad.values(),
            saved,
            pass,
            epilogue,
            sums,
        );
        (output_grad.clone(), output_grad)
    };
    (
        input_grad,
        per_channel::<T, E>(scale_grad),
        per_channel::<T, E>(shift_grad),
        residual_grad,
    )
}

/// The gradients of gamma and beta alone: the sums of the backward pass without its sweep.
fn parameter_gradients<E: HostElement>(
    x: &[E],
    output_grad: &[E],
    saved: Saved<'_, E::Accum>,
    pass: Pass,
    epilogue: Epilogue<'_, E>,
    (gamma_grad, beta_grad): (&mut [E::Accum], &mut [E::Accum]),
) {
    let low = |channel: usize| saved.mean_low.map_or(0.0, |low| low[channel].to_f64());
    // As the forward pass computed them, so that the signs of the activation's argument are the same.
    let scale: Vec<_> = saved
        .gamma
        .iter()
        .zip(saved.inv_std)
        .map(|(&gamma, &inv_std)| gamma.times(inv_std))
        .collect();
    let shift: Vec<_> = (0..scale.len())
        .map(|channel| match saved.mean_low {
            Some(low) => saved.beta[channel].minus(low[channel], scale[channel]),
            None => saved.beta[channel],
        })
        .collect();
    let params = Normalization {
        mean: saved.mean,
        scale: &scale,
        shift: &shift,
    };
    succeed(backward_sums(
        layout(pass),
        x,
        output_grad,
        params,
        epilogue,
        beta_grad,
        gamma_grad,
    ));
    for (channel, gamma_grad) in gamma_grad.iter_mut().enumerate() {
        let centred = gamma_grad.to_f64() - low(channel) * beta_grad[channel].to_f64();
        *gamma_grad = E::Accum::from_f64(centred * saved.inv_std[channel].to_f64());
    }
}

/// What follows the normalization, for the kernels.
fn epilogue<T: HostTensor, E: HostElement>(pass: Pass, residual: Option<&T>) -> Epilogue<'_, E> {
    Epilogue {
        residual: residual.map(T::values),
        activation: pass.activation.into(),
    }
}

/// Runs a kernel that maps a tensor to one of the same shape: over its own memory where nobody else
/// holds it, into fresh memory otherwise.
fn elementwise<T: HostTensor, E: HostElement>(
    input: T,
    kernel: impl FnOnce(Stream<'_, E>) -> Result<(), Error>,
) -> T {
    let shape = input.shape();
    let mut input = input.into_contiguous();
    if let Some(values) = input.values_mut() {
        succeed(kernel(Stream::in_place(values)));
        return input;
    }
    let source = input.values::<E>();
    let mut result = Vec::new();
    succeed(kernel(Stream::new(
        source,
        reserve(&mut result, source.len()),
    )));
    // SAFETY: a kernel that succeeds has written every element of its output (`succeed` panics
    // otherwise), which is the first `source.len()` of those that `reserve` made room for.
    unsafe { result.set_len(source.len()) };
    T::from_values(result, shape)
}

/// `(1 - factor) * running + factor * correction * batch`; a factor of 1 also replaces a NaN.
fn blend<E: HostElement>(
    running: &[E::Accum],
    batch: &[E::Accum],
    factor: f64,
    correction: f64,
) -> Vec<E::Accum> {
    let blended = running.iter().zip(batch).map(|(running, batch)| {
        let batch = batch.to_f64() * correction;
        let kept = match factor {
            1.0 => 0.0,
            factor => (1.0 - factor) * running.to_f64(),
        };
        let added = match factor {
            0.0 => 0.0,
            factor => factor * batch,
        };
        E::Accum::from_f64(kept + added)
    });
    blended.collect()
}

fn zeros<E: HostElement>(len: usize) -> Vec<E::Accum> {
    vec![E::Accum::from_f64(0.0); len]
}

fn per_channel<T: HostTensor, E: HostElement>(values: Vec<E::Accum>) -> T {
    let shape = Shape::new([values.len()]);
    T::from_values(values, shape)
}

fn layout(pass: Pass) -> Layout {
    let View {
        outer,
        channels,
        inner,
    } = pass.view;
    succeed(Layout::new(outer, channels, inner))
}

/// The kernels refuse only lengths and numbers that the layer has checked.
fn succeed<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("batch norm: {error}"))
}

/// The extension trait for a backend whose tensors are [`HostTensor`]s.
macro_rules! implement {
    ($backend:ty, $tensor:ty) => {
        impl BatchNormOps for $backend {
            fn train(
                x: $tensor,
                gamma: $tensor,
                beta: $tensor,
                residual: $tensor,
                running_mean: $tensor,
                running_var: $tensor,
                pass: Pass,
                params: TrainParams,
            ) -> cpu::Trained<$tensor> {
                let running = [running_mean, running_var];
                cpu::train(x, [gamma, beta], residual, running, pass, params)
            }

            fn normalize(
                x: $tensor,
                scale: $tensor,
                shift: $tensor,
                residual: $tensor,
                mean: $tensor,
                pass: Pass,
            ) -> $tensor {
                cpu::normalize_values(x, [mean, scale, shift], residual, pass)
            }

            fn backward(
                x: $tensor,
                output_grad: $tensor,
                scale: $tensor,
                shift: $tensor,
                residual: $tensor,
                saved: $tensor,
                statistics: Statistics,
                pass: Pass,
                wanted: Wanted,
            ) -> ($tensor, $tensor, $tensor, $tensor) {
                let kept = cpu::Kept {
                    x,
                    scale,
                    shift,
                    residual,
                    saved,
                };
                cpu::gradients(kept, output_grad, statistics, pass, wanted)
            }
        }
    };
}
pub(super) use implement;
