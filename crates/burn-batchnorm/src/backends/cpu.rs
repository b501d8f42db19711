//! What the CPU backends share: a tensor in host memory, and the kernels of batchnorm-cpu on it.
//!
//! Memory is the cost of batch norm, and memory that was never touched before costs a page fault
//! every 4 KiB on top. So a result goes into its input's buffer where nobody else holds it: `y` into
//! `x` in inference, `dx` into the gradient of the output. Otherwise it goes into memory that is
//! not zeroed first. A strided input is copied once.

use batchnorm_cpu::{
    Accum, Affine, BatchStatistics, Element, Epilogue, Error, Gradients, Layout, Normalization,
    Output, Saved, Stream, backward_sums, inference_backward, normalize, train_backward,
    train_forward,
};
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Element as BurnElement, Shape};
use bytemuck::Pod;

use crate::extension::{TrainParams, Wanted};
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
    gamma: T,
    beta: T,
    running: [T; 2],
    params: TrainParams,
) -> Trained<T> {
    with_element!(x, E => train_as::<T, E>(x, gamma, beta, running, params))
}

fn train_as<T: HostTensor, E: HostElement>(
    x: T,
    gamma: T,
    beta: T,
    running: [T; 2],
    params: TrainParams,
) -> Trained<T> {
    let layout = layout(params.view);
    let (gamma, beta) = (gamma.into_contiguous(), beta.into_contiguous());
    let channels = params.view.channels;
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
            layout,
            stream,
            affine,
            params.epsilon,
            Epilogue::default(),
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

pub(super) fn train_gradients<T: HostTensor>(
    x: T,
    output_grad: T,
    gamma: T,
    saved: T,
    view: View,
    wanted: Wanted,
) -> (T, T, T) {
    let (gamma, saved) = (gamma.into_contiguous(), saved.into_contiguous());
    with_element!(x, E => {
        let (mean, rest) = saved.values().split_at(view.channels);
        let (mean_low, inv_std) = rest.split_at(view.channels);
        let gamma = gamma.values();
        let saved = Saved {
            gamma,
            // Read by activations alone.
            beta: gamma,
            mean,
            mean_low: Some(mean_low),
            inv_std,
        };
        gradients::<T, E>(x, output_grad, saved, view, wanted, train_backward)
    })
}

pub(super) fn normalize_values<T: HostTensor>(x: T, [mean, scale, shift]: [T; 3], view: View) -> T {
    let vectors = [mean, scale, shift].map(T::into_contiguous);
    with_element!(x, E => {
        let [mean, scale, shift] = vectors.each_ref().map(T::values);
        let params = Normalization { mean, scale, shift };
        elementwise::<T, E>(x, |stream| {
            normalize(layout(view), stream, params, Epilogue::default())
        })
    })
}

pub(super) fn normalize_gradients<T: HostTensor>(
    x: T,
    output_grad: T,
    [mean, scale]: [T; 2],
    view: View,
    wanted: Wanted,
) -> (T, T, T) {
    let vectors = [scale, mean].map(T::into_contiguous);
    with_element!(x, E => {
        let [scale, mean] = vectors.each_ref().map(T::values);
        // scale = gamma * inv_std: with an inverse deviation of 1 the gradient for gamma is that for
        // the scale.
        let ones = vec![<E as Element>::Accum::from_f64(1.0); view.channels];
        let saved = Saved {
            gamma: scale,
            // Read by activations alone.
            beta: scale,
            mean,
            mean_low: None,
            inv_std: &ones,
        };
        gradients::<T, E>(x, output_grad, saved, view, wanted, inference_backward)
    })
}

type BackwardKernel<E> = fn(
    Layout,
    &[E],
    Stream<'_, E>,
    Saved<'_, <E as Element>::Accum>,
    Epilogue<'_, E>,
    Gradients<'_, E>,
) -> Result<(), Error>;

fn gradients<T: HostTensor, E: HostElement>(
    x: T,
    output_grad: T,
    saved: Saved<'_, E::Accum>,
    view: View,
    wanted: Wanted,
    kernel: BackwardKernel<E>,
) -> (T, T, T) {
    let x = x.into_contiguous();
    let [mut gamma_grad, mut beta_grad] = [(); 2].map(|_| zeros::<E>(view.channels));
    let x_grad = match wanted.input {
        true => {
            let out = Gradients {
                residual: None,
                gamma: wanted.scale.then_some(gamma_grad.as_mut_slice()),
                beta: wanted.shift.then_some(beta_grad.as_mut_slice()),
            };
            elementwise::<T, E>(output_grad, |stream| {
                kernel(
                    layout(view),
                    x.values(),
                    stream,
                    saved,
                    Epilogue::default(),
                    out,
                )
            })
        }
        false => {
            let output_grad = output_grad.into_contiguous();
            let sums = (&mut gamma_grad[..], &mut beta_grad[..]);
            parameter_gradients::<E>(x.values(), output_grad.values(), saved, view, sums);
            output_grad
        }
    };
    (
        x_grad,
        per_channel::<T, E>(gamma_grad),
        per_channel::<T, E>(beta_grad),
    )
}

/// The gradients of gamma and beta alone: the sums of the backward pass without its sweep.
fn parameter_gradients<E: HostElement>(
    x: &[E],
    output_grad: &[E],
    saved: Saved<'_, E::Accum>,
    view: View,
    (gamma_grad, beta_grad): (&mut [E::Accum], &mut [E::Accum]),
) {
    let params = Normalization {
        mean: saved.mean,
        // Read by activations alone.
        scale: saved.gamma,
        shift: saved.beta,
    };
    succeed(backward_sums(
        layout(view),
        x,
        output_grad,
        params,
        Epilogue::default(),
        beta_grad,
        gamma_grad,
    ));
    for (channel, gamma_grad) in gamma_grad.iter_mut().enumerate() {
        let low = saved.mean_low.map_or(0.0, |low| low[channel].to_f64());
        let centred = gamma_grad.to_f64() - low * beta_grad[channel].to_f64();
        *gamma_grad = E::Accum::from_f64(centred * saved.inv_std[channel].to_f64());
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
    let mut result = Vec::with_capacity(source.len());
    let memory = Output::from(&mut result.spare_capacity_mut()[..source.len()]);
    succeed(kernel(Stream::new(source, memory)));
    // SAFETY: a kernel that succeeds has written every element of its output (`succeed` panics
    // otherwise), which is the first `source.len()` of the reserved ones.
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

fn layout(view: View) -> Layout {
    succeed(Layout::new(view.outer, view.channels, view.inner))
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
                running_mean: $tensor,
                running_var: $tensor,
                params: TrainParams,
            ) -> cpu::Trained<$tensor> {
                cpu::train(x, gamma, beta, [running_mean, running_var], params)
            }

            fn train_backward(
                x: $tensor,
                output_grad: $tensor,
                gamma: $tensor,
                saved: $tensor,
                view: View,
                wanted: Wanted,
            ) -> ($tensor, $tensor, $tensor) {
                cpu::train_gradients(x, output_grad, gamma, saved, view, wanted)
            }

            fn normalize(
                x: $tensor,
                mean: $tensor,
                scale: $tensor,
                shift: $tensor,
                view: View,
            ) -> $tensor {
                cpu::normalize_values(x, [mean, scale, shift], view)
            }

            fn normalize_backward(
                x: $tensor,
                output_grad: $tensor,
                mean: $tensor,
                scale: $tensor,
                view: View,
                wanted: Wanted,
            ) -> ($tensor, $tensor, $tensor) {
                cpu::normalize_gradients(x, output_grad, [mean, scale], view, wanted)
            }
        }
    };
}
pub(super) use implement;
