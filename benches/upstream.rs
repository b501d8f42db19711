//! A loss whose gradient is a given tensor: what the next layer of a network hands back.
//!
//! Burn's `backward` starts from ones. The usual way to another gradient is `(y * dy).sum()`, whose
//! product and sum cost more than a fast batch norm. This node passes `dy` on as it is, and gives it
//! away: as in a network, nobody else holds it.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Shape, Tensor};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

/// The loss, on the backends of the benches.
#[backend_extension(Flex, NdArray, Cube, Fusion, Autodiff)]
trait UpstreamOps: Backend {
    /// A scalar whose gradient for `y` is `dy`.
    #[fusion(dtype = y, shape = dy)]
    fn upstream(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
}

macro_rules! without_autodiff {
    ($($backend:ty),*) => {$(
        impl UpstreamOps for $backend {
            fn upstream(_y: FloatTensor<Self>, _dy: FloatTensor<Self>) -> FloatTensor<Self> {
                panic!("an upstream gradient expects tensors on an autodiff device")
            }
        }
    )*};
}

without_autodiff!(
    burn::backend::Flex,
    burn::backend::NdArray,
    burn_cubecl::CubeBackend
);

#[derive(Debug)]
struct Upstream;

impl<B: Backend> Backward<B, 1> for Upstream {
    type State = FloatTensor<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        grads.consume::<B>(&ops.node);
        let [y] = ops.parents;
        if let Some(y) = y {
            grads.register::<B>(y.id, ops.state);
        }
    }
}

impl<B: Backend + UpstreamOps, C: CheckpointStrategy> UpstreamOps for Autodiff<B, C> {
    fn upstream(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        let device = y.primitive().device();
        let loss = B::float_zeros(Shape::new([1]), &device, FloatDType::F32);
        let node = Upstream.prepare::<C>([y.node()]);
        match node.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(dy.into_primitive(), loss),
            OpsKind::UnTracked(prep) => prep.finish(loss),
        }
    }
}

/// A scalar whose `backward` hands `dy` to `y`.
pub fn upstream<const D: usize>(y: Tensor<D>, dy: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::upstream(y.into_dispatch(), dy.into_dispatch()))
}
