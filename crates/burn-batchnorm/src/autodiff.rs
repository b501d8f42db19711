//! Training and normalization as one autodiff node each.
//!
//! A node keeps its input and the `[channels]` vectors of its forward pass: no output, nothing of the
//! input's size that the graph does not hold anyway. Gradients that nobody asked for are not
//! computed. Both nodes are compute-bound: under gradient checkpointing they are not run again, so
//! a running statistic counts a batch once.

use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use crate::extension::{BatchNormOps, TrainParams, Wanted};
use crate::view::View;

#[derive(Debug)]
struct Train;

impl<B: Backend + BatchNormOps> Backward<B, 3> for Train {
    /// Input, gamma, what the forward pass saved of its statistics.
    type State = (NodeId, NodeId, FloatTensor<B>, View);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, gamma, saved, view) = ops.state;
        let x = checkpointer.retrieve_node_output(x);
        let gamma = checkpointer.retrieve_node_output(gamma);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        let wanted = wanted(&parents);
        let computed = B::train_backward(x, grad, gamma, saved, view, wanted);
        register::<B>(grads, parents, computed);
    }
}

#[derive(Debug)]
struct Normalize;

impl<B: Backend + BatchNormOps> Backward<B, 3> for Normalize {
    /// Input, scale, mean.
    type State = (NodeId, NodeId, FloatTensor<B>, View);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, scale, mean, view) = ops.state;
        let x = checkpointer.retrieve_node_output(x);
        let scale = checkpointer.retrieve_node_output(scale);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        let wanted = wanted(&parents);
        let computed = B::normalize_backward(x, grad, mean, scale, view, wanted);
        register::<B>(grads, parents, computed);
    }
}

fn wanted(parents: &[Option<NodeId>; 3]) -> Wanted {
    let [input, scale, shift] = parents.each_ref().map(Option::is_some);
    Wanted {
        input,
        scale,
        shift,
    }
}

fn register<B: Backend>(
    grads: &mut Gradients,
    [input, scale, shift]: [Option<NodeId>; 3],
    computed: (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
) {
    let (input_grad, scale_grad, shift_grad) = computed;
    for (parent, grad) in [
        (input, input_grad),
        (scale, scale_grad),
        (shift, shift_grad),
    ] {
        if let Some(parent) = parent {
            grads.register::<B>(parent, grad);
        }
    }
}

impl<B: Backend + BatchNormOps, C: CheckpointStrategy> BatchNormOps for Autodiff<B, C> {
    fn train(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        running_mean: FloatTensor<Self>,
        running_var: FloatTensor<Self>,
        params: TrainParams,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let detached = |tensor| <Self as AutodiffBackend>::from_inner(tensor);
        let run = |x: FloatTensor<Self>, gamma: FloatTensor<Self>, beta: FloatTensor<Self>| {
            B::train(
                x.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
                running_mean.into_primitive(),
                running_var.into_primitive(),
                params,
            )
        };
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (y, mean, variance, saved, running_mean, running_var) =
            match Train.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(mut prep) => {
                    let kept = (prep.checkpoint(&x), prep.checkpoint(&gamma));
                    let (y, mean, variance, saved, new_mean, new_var) = run(x, gamma, beta);
                    let state = (kept.0, kept.1, saved.clone(), params.view);
                    let y = prep.finish(state, y);
                    (y, mean, variance, saved, new_mean, new_var)
                }
                OpsKind::UnTracked(prep) => {
                    let (y, mean, variance, saved, new_mean, new_var) = run(x, gamma, beta);
                    (prep.finish(y), mean, variance, saved, new_mean, new_var)
                }
            };
        (
            y,
            detached(mean),
            detached(variance),
            detached(saved),
            detached(running_mean),
            detached(running_var),
        )
    }

    fn train_backward(
        _x: FloatTensor<Self>,
        _output_grad: FloatTensor<Self>,
        _gamma: FloatTensor<Self>,
        _saved: FloatTensor<Self>,
        _view: View,
        _wanted: Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        panic!("batch norm cannot be differentiated twice")
    }

    fn normalize(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        view: View,
    ) -> FloatTensor<Self> {
        let mean = mean.into_primitive();
        let nodes = [x.node(), scale.node(), shift.node()];
        match Normalize.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (
                    prep.checkpoint(&x),
                    prep.checkpoint(&scale),
                    mean.clone(),
                    view,
                );
                let (x, scale) = (x.into_primitive(), scale.into_primitive());
                let y = B::normalize(x, mean, scale, shift.into_primitive(), view);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => {
                let (x, scale) = (x.into_primitive(), scale.into_primitive());
                let y = B::normalize(x, mean, scale, shift.into_primitive(), view);
                prep.finish(y)
            }
        }
    }

    fn normalize_backward(
        _x: FloatTensor<Self>,
        _output_grad: FloatTensor<Self>,
        _mean: FloatTensor<Self>,
        _scale: FloatTensor<Self>,
        _view: View,
        _wanted: Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        panic!("batch norm cannot be differentiated twice")
    }
}
