//! What the backends in host memory share: a tensor there, and the kernels of batchnorm-cpu on it.
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
use crate::ops::{Pass, Wanted};
use crate::statistics::Update;
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

/// The four results of an operation.
pub(super) type Four<T> = (T, T, T, T);

pub(super) fn train<T: HostTensor>(
    x: T,
    affine: [T; 2],
    residual: Option<T>,
    running: Option<[T; 2]>,
    pass: Pass,
    update: Update,
) -> Four<T> {
    with_element!(x, E => train_as::<T, E>(x, affine, residual, running, pass, update))
}

fn train_as<T: HostTensor, E: HostElement>(
    x: T,
    affine: [T; 2],
    residual: Option<T>,
    running: Option<[T; 2]>,
    pass: Pass,
    update: Update,
) -> Four<T> {
    let [gamma, beta] = affine.map(T::into_contiguous);
    let residual = residual.map(T::into_contiguous);
    let channels = pass.view.channels;
    let mut moments = zeros::<E>(4 * channels);
    let (mean, rest) = moments.split_at_mut(channels);
    let (mean_low, rest) = rest.split_at_mut(channels);
    let (variance, inv_std) = rest.split_at_mut(channels);
    let affine = Affine {
        gamma: gamma.values(),
        beta: beta.values(),
    };
    let out = BatchStatistics {
        mean,
        mean_low: Some(mean_low),
        variance,
        inv_std,
    };
    let y = elementwise::<T, E>(x, |stream| {
        train_forward(
            layout(pass.view),
            stream,
            affine,
            pass.epsilon,
            epilogue(pass, residual.as_ref()),
            out,
        )
    });
    let (mean, variance) = match running {
        None => (gamma.clone(), gamma),
        Some(running) => {
            let [mean, variance] = running.map(T::into_contiguous);
            let batch_mean = &moments[..channels];
            let batch_variance = &moments[2 * channels..3 * channels];
            let Update {
                keep,
                add_mean,
                add_variance,
            } = update;
            let mean = blend::<E>(mean.values(), batch_mean, keep, add_mean);
            let variance = blend::<E>(variance.values(), batch_variance, keep, add_variance);
            (per_channel::<T, E>(mean), per_channel::<T, E>(variance))
        }
    };
    let moments = T::from_values(moments, Shape::new([4, channels]));
    (y, moments, mean, variance)
}

pub(super) fn moments<T: HostTensor>(x: T, view: View) -> T {
    with_element!(x, E => {
        let x = x.into_contiguous();
        let mut center = zeros::<E>(3 * view.channels);
        let (mean, rest) = center.split_at_mut(view.channels);
        let (_, variance) = rest.split_at_mut(view.channels);
        succeed(batchnorm_cpu::moments::<E>(layout(view), x.values(), mean, variance));
        let n = (view.outer * view.inner) as f64;
        for variance in variance {
            *variance = Accum::from_f64(variance.to_f64() / n);
        }
        T::from_values(center, Shape::new([3, view.channels]))
    })
}

/// Statistics in host memory.
pub(super) enum HostMoments<T> {
    Batch(T),
    Center(T),
    Running(T, T),
}

struct Rows<A> {
    mean: Vec<A>,
    low: Option<Vec<A>>,
    inv_std: Vec<A>,
}

impl<T: HostTensor> HostMoments<T> {
    fn rows<A: HostAccum>(self, epsilon: f64) -> Rows<A> {
        let inv_std = |variance: &[A]| {
            let inverse = |v: &A| A::from_f64(1.0 / (v.to_f64() + epsilon).sqrt());
            variance.iter().map(inverse).collect::<Vec<_>>()
        };
        match self {
            Self::Batch(all) => {
                let all = all.into_contiguous();
                let rows: Vec<_> = all.values::<A>().chunks(all.shape()[1]).collect();
                Rows {
                    mean: rows[0].to_vec(),
                    low: Some(rows[1].to_vec()),
                    inv_std: rows[3].to_vec(),
                }
            }
            Self::Center(center) => {
                let center = center.into_contiguous();
                let rows: Vec<_> = center.values::<A>().chunks(center.shape()[1]).collect();
                Rows {
                    mean: rows[0].to_vec(),
                    low: Some(rows[1].to_vec()),
                    inv_std: inv_std(rows[2]),
                }
            }
            Self::Running(mean, variance) => {
                let [mean, variance] = [mean, variance].map(T::into_contiguous);
                Rows {
                    mean: mean.values().to_vec(),
                    low: None,
                    inv_std: inv_std(variance.values()),
                }
            }
        }
    }
}

pub(super) fn normalize_values<T: HostTensor>(
    x: T,
    moments: HostMoments<T>,
    affine: [T; 2],
    residual: Option<T>,
    pass: Pass,
) -> T {
    let [gamma, beta] = affine.map(T::into_contiguous);
    let residual = residual.map(T::into_contiguous);
    with_element!(x, E => {
        let rows = moments.rows::<<E as Element>::Accum>(pass.epsilon);
        let gamma = gamma.values::<<E as Element>::Accum>();
        let scale: Vec<_> = gamma.iter().zip(&rows.inv_std).map(|(g, s)| g.times(*s)).collect();
        let mut shift = beta.values::<<E as Element>::Accum>().to_vec();
        if let Some(low) = &rows.low {
            for (channel, shift) in shift.iter_mut().enumerate() {
                *shift = shift.minus(low[channel], scale[channel]);
            }
        }
        let params = Normalization { mean: &rows.mean, scale: &scale, shift: &shift };
        elementwise::<T, E>(x, |stream| {
            normalize(layout(pass.view), stream, params, epilogue(pass, residual.as_ref()))
        })
    })
}

pub(super) fn affine<T: HostTensor>(x: T, vectors: [T; 3], view: View) -> T {
    let vectors = vectors.map(T::into_contiguous);
    with_element!(x, E => {
        let [mean, scale, shift] = vectors.each_ref().map(T::values);
        let params = Normalization { mean, scale, shift };
        elementwise::<T, E>(x, |stream| {
            normalize(layout(view), stream, params, Epilogue::default())
        })
    })
}

/// The tensors that a backward pass reads besides the gradient.
pub(super) struct Kept<T> {
    pub x: T,
    pub moments: HostMoments<T>,
    pub gamma: T,
    pub beta: T,
    pub residual: Option<T>,
}

/// The gradients of x, gamma, beta and residual.
pub(super) fn gradients<T: HostTensor>(
    kept: Kept<T>,
    y_grad: T,
    pass: Pass,
    wanted: Wanted,
) -> Four<T> {
    with_element!(kept.x, E => gradients_as::<T, E>(kept, y_grad, pass, wanted))
}

fn gradients_as<T: HostTensor, E: HostElement>(
    kept: Kept<T>,
    output_grad: T,
    pass: Pass,
    wanted: Wanted,
) -> Four<T> {
    let Kept {
        x,
        moments,
        gamma,
        beta,
        residual,
    } = kept;
    let channels = pass.view.channels;
    let [x, gamma, beta] = [x, gamma, beta].map(T::into_contiguous);
    // The sign of the activation's argument needs the residual, and nothing else does.
    let activated = pass.activation != Activation::None;
    let residual = residual.filter(|_| activated).map(T::into_contiguous);
    let statistics = match moments {
        HostMoments::Batch(_) => batchnorm_cpu::Statistics::OfBatch,
        _ => batchnorm_cpu::Statistics::Constant,
    };
    let rows = moments.rows::<E::Accum>(pass.epsilon);
    let saved = Saved {
        gamma: gamma.values(),
        beta: beta.values(),
        mean: &rows.mean,
        mean_low: rows.low.as_deref(),
        inv_std: &rows.inv_std,
        statistics,
    };

    let [mut gamma_grad, mut beta_grad] = [(); 2].map(|_| zeros::<E>(channels));
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
            gamma: wanted.gamma.then_some(gamma_grad.as_mut_slice()),
            beta: wanted.beta.then_some(beta_grad.as_mut_slice()),
        };
        let input_grad = elementwise::<T, E>(output_grad, |stream| {
            backward(layout(pass.view), x.values(), stream, saved, epilogue, out)
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
        let sums = (&mut gamma_grad[..], &mut beta_grad[..]);
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
        per_channel::<T, E>(gamma_grad),
        per_channel::<T, E>(beta_grad),
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
        layout(pass.view),
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

/// `keep * running + add * batch`, where a factor of 0 takes nothing, not even a NaN.
fn blend<E: HostElement>(
    running: &[E::Accum],
    batch: &[E::Accum],
    keep: f64,
    add: f64,
) -> Vec<E::Accum> {
    let times = |factor: f64, value: &E::Accum| match factor {
        0.0 => 0.0,
        factor => factor * value.to_f64(),
    };
    let blended = running.iter().zip(batch);
    blended
        .map(|(running, batch)| E::Accum::from_f64(times(keep, running) + times(add, batch)))
        .collect()
}

fn zeros<E: HostElement>(len: usize) -> Vec<E::Accum> {
    vec![E::Accum::from_f64(0.0); len]
}

fn per_channel<T: HostTensor, E: HostElement>(values: Vec<E::Accum>) -> T {
    let shape = Shape::new([values.len()]);
    T::from_values(values, shape)
}

fn layout(view: View) -> Layout {
    let View {
        outer,
        channels,
        inner,
        ..
    } = view;
    succeed(Layout::new(outer, channels, inner))
}

/// The kernels refuse only lengths and numbers that the layer has checked.
fn succeed<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("batch norm: {error}"))
}

/// The operations for a backend whose tensors are [`HostTensor`]s.
macro_rules! implement {
    ($backend:ty, $tensor:ty) => {
        fn optional(residual: Maybe<$backend>) -> Option<$tensor> {
            match residual {
                Maybe::Present(residual) => Some(residual),
                Maybe::Absent => None,
            }
        }

        fn in_host(moments: Moments<$backend>) -> host::HostMoments<$tensor> {
            match moments {
                Moments::Batch(moments) => host::HostMoments::Batch(moments),
                Moments::Center(center) => host::HostMoments::Center(center),
                Moments::Running(mean, variance) => host::HostMoments::Running(mean, variance),
            }
        }

        impl BatchNormOps for $backend {
            fn train(
                x: $tensor,
                gamma: $tensor,
                beta: $tensor,
                residual: Maybe<Self>,
                running: Running<Self>,
                pass: Pass,
                update: Update,
            ) -> host::Four<$tensor> {
                let running = match running {
                    Running::Untracked => None,
                    Running::Tracked(mean, variance) => Some([mean, variance]),
                };
                host::train(x, [gamma, beta], optional(residual), running, pass, update)
            }

            fn moments(x: $tensor, view: View) -> $tensor {
                host::moments(x, view)
            }

            fn normalize(
                x: $tensor,
                moments: Moments<Self>,
                gamma: $tensor,
                beta: $tensor,
                residual: Maybe<Self>,
                pass: Pass,
            ) -> $tensor {
                let (moments, residual) = (in_host(moments), optional(residual));
                host::normalize_values(x, moments, [gamma, beta], residual, pass)
            }

            fn backward(
                x: $tensor,
                y_grad: $tensor,
                moments: Moments<Self>,
                gamma: $tensor,
                beta: $tensor,
                residual: Maybe<Self>,
                pass: Pass,
                wanted: Wanted,
            ) -> host::Four<$tensor> {
                let kept = host::Kept {
                    x,
                    moments: in_host(moments),
                    gamma,
                    beta,
                    residual: optional(residual),
                };
                host::gradients(kept, y_grad, pass, wanted)
            }

            fn affine(
                x: $tensor,
                mean: $tensor,
                scale: $tensor,
                shift: $tensor,
                view: View,
            ) -> $tensor {
                host::affine(x, [mean, scale, shift], view)
            }
        }
    };
}
pub(super) use implement;
