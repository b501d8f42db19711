//! The CubeCL runtimes: tensors to buffers, and the kernels of batchnorm-cube on them.
//!
//! The kernels read and write what lies there: contiguous tensors, NCHW views of channels-last memory as
//! Burn's convolutions return them, rows with a pitch. Results have the memory order of the input, and
//! go into a buffer that nobody else holds where there is one. What the kernels cannot walk over is
//! copied once. What they cannot do on a device (its types, bindings, sizes) is composed of Burn's
//! operations, on that device; they say so before anything is launched, and nothing here waits for it.

use batchnorm_cube::{
    Affine, Center, Epilogue, Error, Gradients, Launches, Operation, Target, TrainOutputs,
};
use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;

use super::buffers::{Weighted, empty, in_one_order, like, supported};
use crate::Activation;
use crate::ops::{BatchNormOps, Maybe, Moments, Pass, Running, Wanted, composed};
use crate::statistics::Update;
use crate::view::View;

impl BatchNormOps for CubeBackend {
    fn train(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: Maybe<Self>,
        weights: Maybe<Self>,
        running: Running<Self>,
        pass: Pass,
        update: Update,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let weighted = Weighted::new(&weights, &x, pass.view);
        let residual = counted(optional(residual), &weights, pass.view);
        let (x, [residual, own]) = in_one_order(x, [residual, weighted.own], pass.view);
        let operation = Operation::Train {
            residual: residual.is_some(),
            weights: matches!(weights, Maybe::Present(_)),
        };
        let Some(problem) = supported(&x, pass.view, operation) else {
            let residual = maybe(residual);
            return composed::train::<Self>(
                x, gamma, beta, residual, weights, running, pass, update,
            );
        };
        let weighted = Weighted { own, ..weighted }.in_order_of(&x, pass.view);
        let [gamma, beta] = [gamma, beta].map(into_contiguous);
        let rows = 4 + usize::from(weighted.handles().is_some());
        let statistics = empty(&gamma, Shape::new([rows, pass.view.channels]));
        let tracked = match running {
            Running::Untracked => None,
            Running::Tracked(mean, variance) => {
                let new = [(); 2].map(|()| empty(&gamma, gamma.shape()));
                Some(([mean, variance].map(into_contiguous), new))
            }
        };
        let running = tracked
            .as_ref()
            .map(
                |([mean, variance], [new_mean, new_variance])| batchnorm_cube::Running {
                    mean: &mean.handle,
                    variance: &variance.handle,
                    new_mean: &new_mean.handle,
                    new_variance: &new_variance.handle,
                    keep: update.keep,
                    add_mean: update.add_mean,
                    add_variance: update.add_variance,
                },
            );
        let y = over(x, |x, y| {
            let (client, x, affine) = (&x.client, &x.handle, affine_of(&gamma, &beta));
            let epilogue = epilogue(pass.activation, residual.as_ref());
            let out = TrainOutputs {
                y,
                statistics: &statistics.handle,
            };
            batchnorm_cube::train(
                client,
                problem,
                x,
                weighted.handles(),
                affine,
                running,
                pass.epsilon,
                epilogue,
                out,
            )
        });
        let [mean, variance] = match tracked {
            Some((_, new)) => new,
            None => [gamma.clone(), gamma],
        };
        (y, statistics, mean, variance)
    }

    fn moments(x: CubeTensor, view: View) -> CubeTensor {
        let (x, []) = in_one_order(x, [], view);
        let Some(problem) = supported(&x, view, Operation::Moments) else {
            return composed::moments::<Self>(x, view);
        };
        let shape = Shape::new([3, view.channels]);
        let dtype = composed::compute_dtype(x.dtype);
        let center =
            empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, dtype);
        succeed(batchnorm_cube::moments(
            &x.client,
            problem,
            &x.handle,
            &center.handle,
        ));
        center
    }

    fn normalize(
        x: CubeTensor,
        moments: Moments<Self>,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: Maybe<Self>,
        weights: Maybe<Self>,
        pass: Pass,
    ) -> CubeTensor {
        if pass.view.is_empty() {
            return x;
        }
        let residual = counted(optional(residual), &weights, pass.view);
        let weighted = Weighted::new(&weights, &x, pass.view);
        let (x, [residual, own]) = in_one_order(x, [residual, weighted.own], pass.view);
        let operation = Operation::Normalize {
            residual: residual.is_some(),
            weights: matches!(weights, Maybe::Present(_)),
        };
        let moments = contiguous(moments);
        let (Some(problem), Some(center)) = (supported(&x, pass.view, operation), center(&moments))
        else {
            let residual = maybe(residual);
            return composed::normalize::<Self>(x, moments, gamma, beta, residual, weights, pass);
        };
        let weighted = Weighted { own, ..weighted }.in_order_of(&x, pass.view);
        let [gamma, beta] = [gamma, beta].map(into_contiguous);
        over(x, |x, y| {
            batchnorm_cube::normalize(
                &x.client,
                problem,
                &x.handle,
                weighted.handles(),
                center,
                affine_of(&gamma, &beta),
                pass.epsilon,
                epilogue(pass.activation, residual.as_ref()),
                y,
            )
        })
    }

    fn backward(
        x: CubeTensor,
        y_grad: CubeTensor,
        moments: Moments<Self>,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: Maybe<Self>,
        weights: Maybe<Self>,
        pass: Pass,
        wanted: Wanted,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        if pass.view.is_empty() {
            let zeros = || {
                let (client, device) = (gamma.client.clone(), gamma.device.clone());
                zeros_client(client, device, gamma.shape(), gamma.dtype)
            };
            return (y_grad.clone(), zeros(), zeros(), y_grad);
        }
        // The sign of the activation's argument needs the residual, and nothing else does.
        let activated = pass.activation != Activation::None;
        let residual = optional(residual).filter(|_| activated);
        let residual = counted(residual, &weights, pass.view);
        let weighted = Weighted::new(&weights, &x, pass.view);
        let tensors = [Some(y_grad), residual, weighted.own];
        let (x, [y_grad, residual, own]) = in_one_order(x, tensors, pass.view);
        let y_grad = y_grad.expect("given above");
        let residual_given = residual.is_some();
        let operation = match moments {
            Moments::Batch(_) => Operation::TrainBackward {
                residual: residual_given,
                weights: matches!(weights, Maybe::Present(_)),
            },
            Moments::Center(_) | Moments::Running(..) => Operation::NormalizeBackward {
                residual: residual_given,
            },
        };
        let Some(problem) = supported(&x, pass.view, operation) else {
            let residual = maybe(residual);
            return composed::backward::<Self>(
                x, y_grad, moments, gamma, beta, residual, weights, pass, wanted,
            );
        };
        let weighted = Weighted { own, ..weighted }.in_order_of(&x, pass.view);
        let moments = contiguous(moments);
        let [gamma, beta] = [gamma, beta].map(into_contiguous);
        let [gamma_grad, beta_grad] = [(); 2].map(|()| empty(&gamma, gamma.shape()));
        // Without an activation the residual's gradient is that of the output.
        let residual_grad = match (wanted.residual, activated) {
            (true, true) => like(&x),
            (true, false) => y_grad.clone(),
            (false, _) => x.clone(),
        };
        let run = |dy: &CubeTensor, input: Option<Target<'_>>| {
            let affine = affine_of(&gamma, &beta);
            let epilogue = epilogue(pass.activation, residual.as_ref());
            let out = Gradients {
                input,
                gamma: wanted.gamma.then_some(&gamma_grad.handle),
                beta: wanted.beta.then_some(&beta_grad.handle),
                residual: (wanted.residual && activated).then_some(&residual_grad.handle),
            };
            let (client, x, dy) = (&dy.client, &x.handle, &dy.handle);
            match (&moments, center(&moments)) {
                (_, Some(center)) => batchnorm_cube::normalize_backward(
                    client,
                    problem,
                    x,
                    weighted.handles(),
                    dy,
                    affine,
                    center,
                    pass.epsilon,
                    epilogue,
                    out,
                ),
                (Moments::Batch(all) | Moments::Center(all) | Moments::Running(all, _), None) => {
                    batchnorm_cube::train_backward(
                        client,
                        problem,
                        x,
                        weighted.handles(),
                        dy,
                        affine,
                        &all.handle,
                        epilogue,
                        out,
                    )
                }
            }
        };
        let x_grad = match wanted.input {
            true => over(y_grad, |dy, dx| run(dy, Some(dx))),
            false => {
                succeed(run(&y_grad, None));
                y_grad
            }
        };
        (x_grad, gamma_grad, beta_grad, residual_grad)
    }

    fn affine(
        x: CubeTensor,
        mean: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        view: View,
    ) -> CubeTensor {
        let (x, []) = in_one_order(x, [], view);
        let Some(problem) = supported(&x, view, Operation::Affine) else {
            return composed::affine::<Self>(x, mean, scale, shift, view);
        };
        let [mean, scale, shift] = [mean, scale, shift].map(into_contiguous);
        over(x, |x, y| {
            batchnorm_cube::affine(
                &x.client,
                problem,
                &x.handle,
                &mean.handle,
                &scale.handle,
                &shift.handle,
                y,
            )
        })
    }
}

/// Runs a kernel that maps a tensor to one of the same shape: over its own buffer where nobody else
/// holds it, into a fresh one otherwise.
fn over(
    input: CubeTensor,
    kernel: impl FnOnce(&CubeTensor, Target<'_>) -> Result<Launches, Error>,
) -> CubeTensor {
    if input.can_mut() {
        succeed(kernel(&input, Target::InPlace));
        return input;
    }
    let output = like(&input);
    succeed(kernel(&input, Target::To(&output.handle)));
    output
}

fn contiguous(moments: Moments<CubeBackend>) -> Moments<CubeBackend> {
    match moments {
        Moments::Batch(all) => Moments::Batch(into_contiguous(all)),
        Moments::Center(center) => Moments::Center(into_contiguous(center)),
        Moments::Running(mean, variance) => {
            Moments::Running(into_contiguous(mean), into_contiguous(variance))
        }
    }
}

/// Given statistics; None where they are those of the input itself.
fn center(moments: &Moments<CubeBackend>) -> Option<Center<'_>> {
    match moments {
        Moments::Batch(_) => None,
        Moments::Center(center) => Some(Center::Packed(&center.handle)),
        Moments::Running(mean, variance) => Some(Center::Apart {
            mean: &mean.handle,
            variance: &variance.handle,
        }),
    }
}

fn affine_of<'a>(gamma: &'a CubeTensor, beta: &'a CubeTensor) -> Affine<'a> {
    Affine {
        gamma: &gamma.handle,
        beta: &beta.handle,
    }
}

fn epilogue(activation: Activation, residual: Option<&CubeTensor>) -> Epilogue<'_> {
    Epilogue {
        activation: activation.into(),
        residual: residual.map(|residual| &residual.handle),
    }
}

/// A residual with 0 where there is no weight and it is not finite, which the kernels do not look after.
fn counted(
    residual: Option<CubeTensor>,
    weights: &Maybe<CubeBackend>,
    view: View,
) -> Option<CubeTensor> {
    match (residual, weights) {
        (Some(residual), Maybe::Present(weights)) if !view.is_empty() => {
            Some(composed::counted::<CubeBackend>(
                residual,
                weights.clone(),
                view,
            ))
        }
        (residual, _) => residual,
    }
}

fn optional(tensor: Maybe<CubeBackend>) -> Option<CubeTensor> {
    match tensor {
        Maybe::Present(tensor) => Some(tensor),
        Maybe::Absent => None,
    }
}

fn maybe(tensor: Option<CubeTensor>) -> Maybe<CubeBackend> {
    tensor.map_or(Maybe::Absent, Maybe::Present)
}

/// The kernels refuse only what the layer has checked or `supported` has said.
fn succeed(result: Result<Launches, Error>) {
    if let Err(error) = result {
        panic!("batch norm: {error}");
    }
}
