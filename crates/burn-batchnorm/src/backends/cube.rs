//! The CubeCL runtimes: tensors to buffers, and the kernels of batchnorm-cube on them.
//!
//! As on the CPU, a result goes into its input's buffer where nobody else holds it. A strided or
//! pitched input is copied once. Nothing here waits for the device.

use batchnorm_cube::{
    Affine, Element, Epilogue, Error, Gradients, Launches, Layout, Problem, Running, Target,
    TrainOutputs,
};
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::server::Handle;

use crate::Activation;
use crate::extension::{BatchNormOps, Pass, Statistics, TrainParams, Wanted};
use crate::view::View;

type BackwardKernels = fn(
    &Client,
    Problem,
    &Handle,
    &Handle,
    Affine<'_>,
    &Handle,
    Epilogue<'_>,
    Gradients<'_>,
) -> Result<Launches, Error>;

impl BatchNormOps for CubeBackend {
    fn train(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: CubeTensor,
        running_mean: CubeTensor,
        running_var: CubeTensor,
        pass: Pass,
        params: TrainParams,
    ) -> (
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
    ) {
        let [gamma, beta, running_mean, running_var] =
            [gamma, beta, running_mean, running_var].map(into_contiguous);
        let residual = pass.residual.then(|| into_contiguous(residual));
        let channels = pass.view.channels;
        let [mean, variance, new_mean, new_variance] =
            [(); 4].map(|_| empty(&gamma, [channels].into(), gamma.dtype));
        let saved = empty(&gamma, [3, channels].into(), gamma.dtype);

        let y = elementwise(x, |x, y| {
            batchnorm_cube::train(
                &x.client,
                problem(x, pass),
                &x.handle,
                Affine {
                    scale: &gamma.handle,
                    shift: &beta.handle,
                },
                Some(Running {
                    mean: &running_mean.handle,
                    variance: &running_var.handle,
                    new_mean: &new_mean.handle,
                    new_variance: &new_variance.handle,
                }),
                batchnorm_cube::TrainParams {
                    epsilon: params.epsilon,
                    factor: params.factor,
                    correction: params.correction,
                },
                epilogue(pass, residual.as_ref()),
                TrainOutputs {
                    y,
                    mean: Some(&mean.handle),
                    variance: &variance.handle,
                    saved: &saved.handle,
                },
            )
        });
        (y, mean, variance, saved, new_mean, new_variance)
    }

    fn normalize(
        x: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        residual: CubeTensor,
        mean: CubeTensor,
        pass: Pass,
    ) -> CubeTensor {
        let [scale, shift, mean] = [scale, shift, mean].map(into_contiguous);
        let residual = pass.residual.then(|| into_contiguous(residual));
        elementwise(x, |x, y| {
            batchnorm_cube::normalize(
                &x.client,
                problem(x, pass),
                &x.handle,
                &mean.handle,
                Affine {
                    scale: &scale.handle,
                    shift: &shift.handle,
                },
                epilogue(pass, residual.as_ref()),
                y,
            )
        })
    }

    fn backward(
        x: CubeTensor,
        output_grad: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        residual: CubeTensor,
        saved: CubeTensor,
        statistics: Statistics,
        pass: Pass,
        wanted: Wanted,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let [x, scale, shift, saved] = [x, scale, shift, saved].map(into_contiguous);
        // The sign of the activation's argument needs the residual, and nothing else does.
        let activated = pass.activation != Activation::None;
        let residual = (pass.residual && activated).then(|| into_contiguous(residual));
        let [scale_grad, shift_grad] = [(); 2].map(|_| empty(&scale, scale.shape(), scale.dtype));
        // Without an activation the residual's gradient is that of the output.
        let residual_grad = match (wanted.residual, activated) {
            (true, true) => empty(&x, x.shape(), x.dtype),
            (true, false) => output_grad.clone(),
            (false, _) => x.clone(),
        };
        let run = |dy: &CubeTensor, input: Option<Target<'_>>| {
            let gradients = Gradients {
                input,
                scale: wanted.scale.then_some(&scale_grad.handle),
                shift: wanted.shift.then_some(&shift_grad.handle),
                residual: (wanted.residual && activated).then_some(&residual_grad.handle),
            };
            let affine = Affine {
                scale: &scale.handle,
                shift: &shift.handle,
            };
            let backward: BackwardKernels = match statistics {
                Statistics::Batch => batchnorm_cube::train_backward,
                Statistics::Given => batchnorm_cube::normalize_backward,
            };
            backward(
                &dy.client,
                problem(dy, pass),
                &x.handle,
                &dy.handle,
                affine,
                &saved.handle,
                epilogue(pass, residual.as_ref()),
                gradients,
            )
        };
        let input_grad = match wanted.input {
            true => elementwise(output_grad, |dy, dx| run(dy, Some(dx))),
            false => {
                let output_grad = into_contiguous(output_grad);
                succeed(run(&output_grad, None));
                output_grad
            }
        };
        (input_grad, scale_grad, shift_grad, residual_grad)
    }
}

/// Runs a kernel that maps a tensor to one of the same shape: over its own buffer where nobody else
/// holds it, into a fresh one otherwise.
fn elementwise(
    input: CubeTensor,
    kernel: impl FnOnce(&CubeTensor, Target<'_>) -> Result<Launches, Error>,
) -> CubeTensor {
    let input = into_contiguous(input);
    if input.can_mut() {
        succeed(kernel(&input, Target::InPlace));
        return input;
    }
    let output = empty(&input, input.shape(), input.dtype);
    succeed(kernel(&input, Target::To(&output.handle)));
    output
}

/// A buffer on the device of `like`, with whatever it held.
fn empty(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

fn problem(tensor: &CubeTensor, pass: Pass) -> Problem {
    let element = match tensor.dtype {
        DType::F32 => Element::F32,
        DType::F64 => Element::F64,
        DType::F16 => Element::F16,
        DType::BF16 => Element::Bf16,
        dtype => panic!("batch norm expects a tensor of F32, F64, F16 or BF16, got {dtype:?}"),
    };
    let View {
        outer,
        channels,
        inner,
    } = pass.view;
    let layout = Layout {
        outer,
        channels,
        inner,
    };
    Problem::new(layout, element)
}

/// What follows the normalization, for the kernels.
fn epilogue(pass: Pass, residual: Option<&CubeTensor>) -> Epilogue<'_> {
    Epilogue {
        activation: pass.activation.into(),
        residual: residual.map(|residual| &residual.handle),
    }
}

/// The kernels refuse what the layer has checked, and types that the device lacks. That is an error of
/// the call and no reason to compute somewhere else.
fn succeed(result: Result<Launches, Error>) {
    if let Err(error) = result {
        panic!("batch norm: {error}");
    }
}
