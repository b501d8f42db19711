//! The operations as autodiff nodes.
//!
//! A node keeps its input and the tensors per channel of its forward pass: no output, nothing of the
//! input's size that the graph does not hold anyway. Where [`Pass::from_output`] says so, it keeps its
//! output instead, which the next operation holds too, and the input's memory is free for it. A residual is kept only where an activation
//! follows, whose argument the backward pass recomputes. Gradients that nobody asked for are not
//! computed. Nodes are compute-bound: under gradient checkpointing they are not run again, so a
//! running statistic counts a batch once.
//!
//! `normalize(x, moments(x))` is two nodes and gives the gradients of `train`, which is one: the first
//! takes `center` for a variable of its own, with the gradients
//!
//! ```text
//! d mean     = -gamma * inv_std * sum(g)                              g: y's gradient, behind the
//! d variance = -1/2 * gamma * inv_std^2 * sum(g * (x - mean) * inv_std)     activation's derivative
//! ```
//!
//! and the second returns `dx = d mean / n + d variance * 2 / n * (x - mean)`.

use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend, TensorMetadata};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use super::composed::{centred_of_output, inv_std, pack, row, zeros};
use super::{BatchNormOps, Maybe, Moments, Pass, Running, Wanted};
use crate::Activation;
use crate::statistics::Update;
use crate::view::View;

/// `train` or `normalize`, with the parents x, gamma, beta and, where there is one or the other,
/// residual and center.
#[derive(Debug)]
struct Normalize;

#[derive(Debug, Clone)]
struct Kept<B: Backend> {
    source: Source<B>,
    /// If the backward pass reads it.
    residual: Option<NodeId>,
    weights: Maybe<B>,
    moments: Moments<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    pass: Pass,
}

/// What a backward pass has the input from.
#[derive(Debug, Clone)]
enum Source<B: Backend> {
    Input(NodeId),
    /// Of a pass that was normalized by its batch.
    Output(FloatTensor<B>),
}

impl<B: Backend + BatchNormOps, const N: usize> Backward<B, N> for Normalize {
    type State = Kept<B>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let y_grad = grads.consume::<B>(&ops.node);
        let kept = ops.state;
        let mut parents = ops.parents.into_iter();
        let [x, gamma, beta, residual, center] =
            std::array::from_fn(|_| parents.next().flatten().map(|node| node.id));
        let wanted = Wanted {
            input: x.is_some(),
            gamma: gamma.is_some() || center.is_some(),
            beta: beta.is_some() || center.is_some(),
            residual: residual.is_some(),
        };
        let (input, moments) = match (kept.source, &kept.moments) {
            (Source::Output(y), Moments::Batch(moments)) => {
                centred_of_output::<B>(y, moments, kept.gamma.clone(), kept.beta.clone(), kept.pass)
            }
            (Source::Output(_), _) => unreachable!("only `train` works from its output"),
            (Source::Input(x), moments) => (checkpointer.retrieve_node_output(x), moments.clone()),
        };
        let (x_grad, gamma_grad, beta_grad, residual_grad) = B::backward(
            input,
            y_grad,
            moments,
            kept.gamma.clone(),
            kept.beta,
            match kept.residual {
                Some(residual) => Maybe::Present(checkpointer.retrieve_node_output(residual)),
                None => Maybe::Absent,
            },
            kept.weights,
            kept.pass,
            wanted,
        );
        if let (Some(id), Moments::Center(center)) = (center, kept.moments) {
            let inv_std = inv_std::<B>(row::<B>(&center, 2), kept.pass.epsilon);
            let scale = B::float_mul(kept.gamma, inv_std.clone());
            let mean = B::float_neg(B::float_mul(scale.clone(), beta_grad.clone()));
            let variance = B::float_mul(B::float_mul(scale, inv_std), gamma_grad.clone());
            let variance = B::float_mul_scalar(variance, (-0.5).into());
            // What rounding took from the mean is no variable of its own.
            let rest = zeros::<B>(&mean, mean.shape());
            grads.register::<B>(id, pack::<B>(vec![mean, rest, variance]));
        }
        let parents = [x, gamma, beta, residual];
        let gradients = [x_grad, gamma_grad, beta_grad, residual_grad];
        for (parent, gradient) in parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent, gradient);
            }
        }
    }
}

/// What the forward pass of a node reads.
struct Inputs<B: Backend> {
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Maybe<B>,
    /// Constants.
    weights: Maybe<B>,
    moments: Option<Moments<B>>,
}

impl<B: Backend + BatchNormOps, C: CheckpointStrategy> Maybe<Autodiff<B, C>> {
    fn inner(self) -> Maybe<B> {
        match self {
            Maybe::Present(tensor) => Maybe::Present(tensor.into_primitive()),
            Maybe::Absent => Maybe::Absent,
        }
    }
}

impl<B: Backend + BatchNormOps, C: CheckpointStrategy> Inputs<Autodiff<B, C>> {
    fn inner(self) -> Inputs<B> {
        Inputs {
            x: self.x.into_primitive(),
            gamma: self.gamma.into_primitive(),
            beta: self.beta.into_primitive(),
            residual: self.residual.inner(),
            weights: self.weights.inner(),
            moments: self.moments.map(|moments| match moments {
                Moments::Batch(moments) => Moments::Batch(moments.into_primitive()),
                Moments::Center(center) => Moments::Center(center.into_primitive()),
                Moments::Running(mean, variance) => {
                    Moments::Running(mean.into_primitive(), variance.into_primitive())
                }
            }),
        }
    }

    /// Runs `forward`, which returns the output and the statistics that it normalized by, as one node.
    fn node(
        self,
        pass: Pass,
        forward: impl FnOnce(Inputs<B>) -> (FloatTensor<B>, Moments<B>),
    ) -> FloatTensor<Autodiff<B, C>> {
        let (x, gamma, beta) = (self.x.clone(), self.gamma.clone(), self.beta.clone());
        let residual = match &self.residual {
            Maybe::Present(residual) => Some(residual.clone()),
            Maybe::Absent => None,
        };
        let center = match &self.moments {
            Some(Moments::Center(center)) => Some(center.clone()),
            _ => None,
        };
        if residual.is_none() && center.is_none() {
            return self.node_of([x, gamma, beta], pass, forward);
        }
        // A parent that is missing is a constant.
        let constant = || Autodiff::<B, C>::from_inner(self.beta.primitive().clone());
        let residual = residual.unwrap_or_else(constant);
        let center = center.unwrap_or_else(constant);
        self.node_of([x, gamma, beta, residual, center], pass, forward)
    }

    fn node_of<const N: usize>(
        self,
        parents: [FloatTensor<Autodiff<B, C>>; N],
        pass: Pass,
        forward: impl FnOnce(Inputs<B>) -> (FloatTensor<B>, Moments<B>),
    ) -> FloatTensor<Autodiff<B, C>> {
        let nodes = parents.each_ref().map(|parent| parent.node());
        match Normalize.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = (!pass.from_output).then(|| prep.checkpoint(&self.x));
                let residual = match &self.residual {
                    Maybe::Present(residual) if pass.activation != Activation::None => {
                        Some(prep.checkpoint(residual))
                    }
                    _ => None,
                };
                // Without them the input's buffer could not be reused by `forward`.
                drop(parents);
                let inputs = self.inner();
                let (gamma, beta) = (inputs.gamma.clone(), inputs.beta.clone());
                let weights = inputs.weights.clone();
                let (y, moments) = forward(inputs);
                let source = match x {
                    Some(x) => Source::Input(x),
                    None => Source::Output(y.clone()),
                };
                let kept = Kept {
                    source,
                    residual,
                    weights,
                    moments,
                    gamma,
                    beta,
                    pass,
                };
                prep.finish(kept, y)
            }
            OpsKind::UnTracked(prep) => {
                drop(parents);
                prep.finish(forward(self.inner()).0)
            }
        }
    }
}

/// `moments`, with the parent x.
#[derive(Debug)]
struct Center;

impl<B: Backend + BatchNormOps> Backward<B, 1> for Center {
    type State = (NodeId, FloatTensor<B>, View);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x, center, view) = ops.state;
        let [parent] = ops.parents;
        let x = checkpointer.retrieve_node_output(x);
        if let Some(parent) = parent {
            let n = (view.outer * view.inner) as f64;
            let scale = B::float_mul_scalar(row::<B>(&gradient, 2), (2.0 / n).into());
            let rest = B::float_mul(row::<B>(&center, 1), scale.clone());
            let shift = B::float_mul_scalar(row::<B>(&gradient, 0), (1.0 / n).into());
            let shift = B::float_sub(shift, rest);
            let x_grad = B::affine(x, row::<B>(&center, 0), scale, shift, view);
            grads.register::<B>(parent.id, x_grad);
        }
    }
}

impl<B: Backend + BatchNormOps, C: CheckpointStrategy> BatchNormOps for Autodiff<B, C> {
    fn train(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Maybe<Self>,
        weights: Maybe<Self>,
        running: Running<Self>,
        pass: Pass,
        update: Update,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let running = match running {
            Running::Untracked => Running::Untracked,
            Running::Tracked(mean, variance) => {
                Running::Tracked(mean.into_primitive(), variance.into_primitive())
            }
        };
        let inputs = Inputs {
            x,
            gamma,
            beta,
            residual,
            weights,
            moments: None,
        };
        let mut results = None;
        let y = inputs.node(pass, |inputs| {
            let Inputs {
                x,
                gamma,
                beta,
                residual,
                weights,
                ..
            } = inputs;
            let (y, moments, mean, variance) =
                B::train(x, gamma, beta, residual, weights, running, pass, update);
            results = Some([moments.clone(), mean, variance]);
            (y, Moments::Batch(moments))
        });
        let [moments, mean, variance] = results
            .expect("a node runs its forward pass")
            .map(<Self as AutodiffBackend>::from_inner);
        (y, moments, mean, variance)
    }

    fn moments(x: FloatTensor<Self>, view: View) -> FloatTensor<Self> {
        match Center.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let id = prep.checkpoint(&x);
                let center = B::moments(x.into_primitive(), view);
                prep.finish((id, center.clone(), view), center)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::moments(x.into_primitive(), view)),
        }
    }

    fn normalize(
        x: FloatTensor<Self>,
        moments: Moments<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Maybe<Self>,
        weights: Maybe<Self>,
        pass: Pass,
    ) -> FloatTensor<Self> {
        let inputs = Inputs {
            x,
            gamma,
            beta,
            residual,
            weights,
            moments: Some(moments),
        };
        inputs.node(pass, |inputs| {
            let moments = inputs.moments.expect("given above");
            let Inputs {
                x,
                gamma,
                beta,
                residual,
                weights,
                ..
            } = inputs;
            let y = B::normalize(x, moments.clone(), gamma, beta, residual, weights, pass);
            (y, moments)
        })
    }

    fn backward(
        _x: FloatTensor<Self>,
        _y_grad: FloatTensor<Self>,
        _moments: Moments<Self>,
        _gamma: FloatTensor<Self>,
        _beta: FloatTensor<Self>,
        _residual: Maybe<Self>,
        _weights: Maybe<Self>,
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

    fn affine(
        _x: FloatTensor<Self>,
        _mean: FloatTensor<Self>,
        _scale: FloatTensor<Self>,
        _shift: FloatTensor<Self>,
        _view: View,
    ) -> FloatTensor<Self> {
        panic!("batch norm cannot be differentiated twice")
    }
}
