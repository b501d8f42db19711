//! The CubeCL runtimes.

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use crate::ops::{BatchNormOps, Maybe, Moments, Pass, Running, Wanted, composed};
use crate::statistics::Update;
use crate::view::View;

impl BatchNormOps for CubeBackend {
    fn train(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: Maybe<Self>,
        running: Running<Self>,
        pass: Pass,
        update: Update,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        composed::train::<Self>(x, gamma, beta, residual, running, pass, update)
    }

    fn moments(x: CubeTensor, view: View) -> CubeTensor {
        composed::moments::<Self>(x, view)
    }

    fn normalize(
        x: CubeTensor,
        moments: Moments<Self>,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: Maybe<Self>,
        pass: Pass,
    ) -> CubeTensor {
        composed::normalize::<Self>(x, moments, gamma, beta, residual, pass)
    }

    fn backward(
        x: CubeTensor,
        y_grad: CubeTensor,
        moments: Moments<Self>,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: Maybe<Self>,
        pass: Pass,
        wanted: Wanted,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        composed::backward::<Self>(x, y_grad, moments, gamma, beta, residual, pass, wanted)
    }

    fn affine(
        x: CubeTensor,
        mean: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        view: View,
    ) -> CubeTensor {
        composed::affine::<Self>(x, mean, scale, shift, view)
    }
}
