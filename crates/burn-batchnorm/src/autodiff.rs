//! Batch normalization as one autodiff node, with the statistics of the batch or with given ones.
//!
//! A node keeps its input and the `[channels]` vectors of its forward pass: no output, nothing of the
//! input's size that the graph does not hold anyway. A residual is kept only where an activation
//! follows, whose argument the backward pass recomputes. Gradients that nobody asked for are not
//! computed. The node is compute-bound: under gradient checkpointing it is not run again, so a
//! running statistic counts a batch once.

use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use crate::Activation;
use crate::extension::{BatchNormOps, Pass, Statistics, TrainParams, Wanted};

#[derive(Debug)]
struct BatchNorm;

/// What a node keeps.
#[derive(Debug, Clone)]
struct State<B: Backend> {
    x: NodeId,
    /// If the backward pass reads it.
    residual: Option<NodeId>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    saved: FloatTensor<B>,
    statistics: Statistics,
    pass: Pass,
}

impl<B: Backend + BatchNormOps> Backward<B, 4> for BatchNorm {
    type State = State<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let output_grad = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        let [input, scale, shift, residual] = parents.each_ref().map(Option::is_some);
        let (dx, dscale, dshift, dresidual) = B::backward(
            checkpointer.retrieve_node_output(state.x),
            output_grad,
            state.scale,
            state.shift.clone(),
            match state.residual {
                Some(residual) => checkpointer.retrieve_node_output(residual),
                None => state.shift,
            },
            state.saved,
            state.statistics,
            state.pass,
            Wanted {
                input,
                scale,
                shift,
                residual,
            },
        );
        for (parent, grad) in parents.into_iter().zip([dx, dscale, dshift, dresidual]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent, grad);
            }
        }
    }
}

/// What a forward pass reads: x, scale or gamma, shift or beta, residual.
type Inputs<B> = [FloatTensor<B>; 4];

/// Runs `forward`, which returns the output and what the backward pass needs of the statistics, as one
/// node.
fn node<B: Backend + BatchNormOps, C: CheckpointStrategy>(
    inputs: Inputs<Autodiff<B, C>>,
    statistics: Statistics,
    pass: Pass,
    forward: impl FnOnce(Inputs<B>) -> (FloatTensor<B>, FloatTensor<B>),
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    match BatchNorm.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let [x, .., residual] = &inputs;
            let x = prep.checkpoint(x);
            let reads_residual = pass.residual && pass.activation != Activation::None;
            let residual = reads_residual.then(|| prep.checkpoint(residual));
            let inputs = inputs.map(|input| input.into_primitive());
            let [scale, shift] = [inputs[1].clone(), inputs[2].clone()];
            let (y, saved) = forward(inputs);
            let state = State {
                x,
                residual,
                scale,
                shift,
                saved,
                statistics,
                pass,
            };
            prep.finish(state, y)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(forward(inputs.map(|input| input.into_primitive())).0)
        }
    }
}

impl<B: Backend + BatchNormOps, C: CheckpointStrategy> BatchNormOps for Autodiff<B, C> {
    fn train(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        running_mean: FloatTensor<Self>,
        running_var: FloatTensor<Self>,
        pass: Pass,
        params: TrainParams,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let mut statistics = None;
        let y = node::<B, C>(
            [x, gamma, beta, residual],
            Statistics::Batch,
            pass,
            |[x, gamma, beta, residual]| {
                let (y, mean, variance, saved, running_mean, running_var) = B::train(
                    x,
                    gamma,
                    beta,
                    residual,
                    running_mean.into_primitive(),
                    running_var.into_primitive(),
                    pass,
                    params,
                );
                statistics = Some([mean, variance, saved.clone(), running_mean, running_var]);
                (y, saved)
            },
        );
        let [mean, variance, saved, running_mean, running_var] = statistics
            .expect("the node runs its forward pass")
            .map(<Self as AutodiffBackend>::from_inner);
        (y, mean, variance, saved, running_mean, running_var)
    }

    fn normalize(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        pass: Pass,
    ) -> FloatTensor<Self> {
        let mean = mean.into_primitive();
        node::<B, C>(
            [x, scale, shift, residual],
            Statistics::Given,
            pass,
            |[x, scale, shift, residual]| {
                let y = B::normalize(x, scale, shift, residual, mean.clone(), pass);
                (y, mean)
            },
        )
    }

    fn backward(
        _x: FloatTensor<Self>,
        _output_grad: FloatTensor<Self>,
        _scale: FloatTensor<Self>,
        _shift: FloatTensor<Self>,
        _residual: FloatTensor<Self>,
        _saved: FloatTensor<Self>,
        _statistics: Statistics,
        _pass: Pass,
        _wanted: Wanted,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        panic!("batch norm cannot be differentiated twice")
    }
}
