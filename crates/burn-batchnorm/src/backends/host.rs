//! What the backends in host memory share: a tensor there, and the kernels of batchnorm-cpu on it.
//!
//! Memory is the cost of batch norm, and memory that was never touched before costs a page fault
//! every 4 KiB on top. So a result goes into its input's buffer where nobody else holds it: `y` into
//! `x` in inference, `dx` into the gradient of the output. Otherwise it goes into memory that is
//! not zeroed first. A strided input is copied once.

use batchnorm_cpu::{
    Accum, Affine, Element, Epilogue, Error, Given, Gradients, InOut, Layout, Output, Saved,
    Statistics, Weights, backward, backward_weighted, blend, normalize_weighted, reserve,
    train_weighted,
};
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Element as BurnElement, Shape};
use bytemuck::Pod;

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
    more: [Option<T>; 2],
    running: Option<[T; 2]>,
    pass: Pass,
    update: Update,
) -> Four<T> {
    with_element!(x, E => train_as::<T, E>(x, affine, more, running, pass, update))
}

fn train_as<T: HostTensor, E: HostElement>(
    x: T,
    affine: [T; 2],
    more: [Option<T>; 2],
    running: Option<[T; 2]>,
    pass: Pass,
    update: Update,
) -> Four<T> {
    let affine = affine.map(T::into_contiguous);
    let [residual, weights] = more.map(|tensor| tensor.map(T::into_contiguous));
    let channels = pass.view.channels;
    let rows = 4 + usize::from(weights.is_some());
    let mut moments = zeros::<E>(rows * channels);
    let y = elementwise::<T, E>(x, |x| {
        let (moments, sums) = moments.split_at_mut(4 * channels);
        let out = Statistics::split_mut(moments, channels)?;
        let (epsilon, epilogue) = (pass.epsilon, epilogue(pass, residual.as_ref()));
        let (layout, affine) = (layout(pass.view), affine_of(&affine));
        match &weights {
            None => batchnorm_cpu::train(layout, x, affine, epsilon, epilogue, out),
            Some(weights) => {
                let weights = weights_of(weights, pass.view);
                train_weighted(layout, x, weights, affine, epsilon, epilogue, out, sums)
            }
        }
    });
    let (mean, variance) = match running {
        None => (affine[0].clone(), affine[1].clone()),
        Some(running) => {
            let [mean, variance] = running.map(T::into_contiguous);
            let batch = succeed(Statistics::split(&moments[..4 * channels], channels));
            let blended = |old: &T, new: &[E::Accum], add: f64| {
                let mut out = zeros::<E>(channels);
                succeed(blend(old.values(), new, update.keep, add, &mut out));
                per_channel::<T, E>(out)
            };
            (
                blended(&mean, batch.mean, update.add_mean),
                blended(&variance, batch.variance, update.add_variance),
            )
        }
    };
    let moments = T::from_values(moments, Shape::new([rows, channels]));
    (y, moments, mean, variance)
}

pub(super) fn moments<T: HostTensor>(x: T, view: View) -> T {
    with_element!(x, E => {
        let x = x.into_contiguous();
        let mut center = zeros::<E>(3 * view.channels);
        let (mean, rest) = center.split_at_mut(view.channels);
        let (mean_lo, variance) = rest.split_at_mut(view.channels);
        let x = x.values::<E>();
        succeed(batchnorm_cpu::moments(layout(view), x, mean, mean_lo, variance));
        T::from_values(center, Shape::new([3, view.channels]))
    })
}

/// The statistics of an operation, contiguous.
pub(super) enum HostMoments<T> {
    Batch(T),
    Center(T),
    Running(T, T),
}

impl<T: HostTensor> HostMoments<T> {
    fn into_contiguous(self) -> Self {
        match self {
            Self::Batch(all) => Self::Batch(all.into_contiguous()),
            Self::Center(center) => Self::Center(center.into_contiguous()),
            Self::Running(mean, variance) => {
                Self::Running(mean.into_contiguous(), variance.into_contiguous())
            }
        }
    }

    fn saved<A: HostAccum>(&self, pass: Pass) -> Saved<'_, A> {
        let channels = pass.view.channels;
        let (mean, mean_lo, variance) = match self {
            Self::Batch(all) => {
                let four = &all.values()[..4 * channels];
                return Saved::Batch(succeed(Statistics::split(four, channels)));
            }
            Self::Center(center) => {
                let (mean, rest) = center.values().split_at(channels);
                let (mean_lo, variance) = rest.split_at(channels);
                (mean, Some(mean_lo), variance)
            }
            Self::Running(mean, variance) => (mean.values(), None, variance.values()),
        };
        Saved::Given(Given {
            mean,
            mean_lo,
            variance,
            epsilon: pass.epsilon,
        })
    }
}

pub(super) fn normalize<T: HostTensor>(
    x: T,
    moments: HostMoments<T>,
    affine: [T; 2],
    more: [Option<T>; 2],
    pass: Pass,
) -> T {
    let affine = affine.map(T::into_contiguous);
    let [residual, weights] = more.map(|tensor| tensor.map(T::into_contiguous));
    let moments = moments.into_contiguous();
    with_element!(x, E => {
        elementwise::<T, E>(x, |x| {
            let Saved::Given(given) = moments.saved(pass) else {
                panic!("batch norm normalizes by the statistics of an input in `train` alone")
            };
            let epilogue = epilogue(pass, residual.as_ref());
            let (layout, affine) = (layout(pass.view), affine_of(&affine));
            match &weights {
                None => batchnorm_cpu::normalize(layout, x, given, affine, epilogue),
                Some(weights) => {
                    let weights = weights_of(weights, pass.view);
                    normalize_weighted(layout, x, weights, given, affine, epilogue)
                }
            }
        })
    })
}

pub(super) fn affine<T: HostTensor>(x: T, vectors: [T; 3], view: View) -> T {
    let vectors = vectors.map(T::into_contiguous);
    with_element!(x, E => {
        let [mean, scale, shift] = vectors.each_ref().map(T::values);
        elementwise::<T, E>(x, |x| batchnorm_cpu::affine(layout(view), x, mean, scale, shift))
    })
}

/// The tensors that a backward pass reads besides the gradient.
pub(super) struct Kept<T> {
    pub x: T,
    pub moments: HostMoments<T>,
    pub affine: [T; 2],
    pub residual: Option<T>,
    pub weights: Option<T>,
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
    y_grad: T,
    pass: Pass,
    wanted: Wanted,
) -> Four<T> {
    let x = kept.x.into_contiguous();
    let affine = kept.affine.map(T::into_contiguous);
    let moments = kept.moments.into_contiguous();
    // The sign of the activation's argument needs the residual, and nothing else does.
    let activated = pass.activation != Activation::None;
    let residual = kept.residual.filter(|_| activated);
    let residual = residual.map(T::into_contiguous);
    let weights = kept.weights.map(T::into_contiguous);

    let [mut gamma_grad, mut beta_grad] = [(); 2].map(|()| zeros::<E>(pass.view.channels));
    let shape = y_grad.shape();
    let elements = shape.num_elements();
    // Without an activation the residual's gradient is that of the output.
    let same = (wanted.residual && !activated).then(|| y_grad.clone());
    let written = wanted.residual && activated;
    let mut fresh = Vec::new();
    let out = Gradients {
        residual: written.then(|| Output::from(reserve(&mut fresh, elements))),
        gamma: wanted.gamma.then_some(gamma_grad.as_mut_slice()),
        beta: wanted.beta.then_some(beta_grad.as_mut_slice()),
    };
    let run = |y_grad: InOut<'_, E>| {
        let epilogue = epilogue(pass, residual.as_ref());
        let (saved, affine) = (moments.saved(pass), affine_of(&affine));
        let (layout, x) = (layout(pass.view), x.values());
        let Some(weights) = &weights else {
            return backward(layout, x, y_grad, saved, affine, epilogue, out);
        };
        let sums = match &moments {
            HostMoments::Batch(all) => &all.values()[4 * pass.view.channels..],
            HostMoments::Center(_) | HostMoments::Running(..) => &[],
        };
        let weights = weights_of(weights, pass.view);
        backward_weighted(
            layout, x, weights, y_grad, saved, sums, affine, epilogue, out,
        )
    };
    let x_grad = match wanted.input {
        true => elementwise::<T, E>(y_grad, run),
        false => {
            let y_grad = y_grad.into_contiguous();
            succeed(run(InOut::only(y_grad.values())));
            y_grad
        }
    };
    let residual_grad = match same {
        Some(same) => same,
        None if written => {
            // SAFETY: `run` has succeeded, or `succeed` has panicked: so all elements of the output that
            // `reserve` made in this vector are written.
            unsafe { fresh.set_len(elements) };
            T::from_values(fresh, shape)
        }
        None => x_grad.clone(),
    };
    (
        x_grad,
        per_channel::<T, E>(gamma_grad),
        per_channel::<T, E>(beta_grad),
        residual_grad,
    )
}

/// Weights of shape `[outer, 1 or channels, inner]`, for the kernels.
fn weights_of<T: HostTensor, A: HostAccum>(weights: &T, view: View) -> Weights<'_, A> {
    match weights.shape()[1] == view.channels {
        true => Weights::Own(weights.values()),
        false => Weights::Shared(weights.values()),
    }
}

fn affine_of<T: HostTensor, A: HostAccum>([gamma, beta]: &[T; 2]) -> Affine<'_, A> {
    Affine {
        gamma: gamma.values(),
        beta: beta.values(),
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
    kernel: impl FnOnce(InOut<'_, E>) -> Result<(), Error>,
) -> T {
    let shape = input.shape();
    let mut input = input.into_contiguous();
    if let Some(values) = input.values_mut() {
        succeed(kernel(InOut::in_place(values)));
        return input;
    }
    let source = input.values::<E>();
    let mut result = Vec::new();
    succeed(kernel(InOut::new(
        source,
        reserve(&mut result, source.len()),
    )));
    // SAFETY: a kernel that succeeds has written every element of its output (`succeed` panics
    // otherwise), which is the first `source.len()` of those that `reserve` made room for.
    unsafe { result.set_len(source.len()) };
    T::from_values(result, shape)
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
