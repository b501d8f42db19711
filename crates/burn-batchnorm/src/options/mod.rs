//! What goes beyond plain batch norm: ordinary tensor algebra around
//! [`moments`](crate::functional::moments) and [`normalize`](crate::functional::normalize), one file an
//! option.

mod blend;
pub mod domains;
pub mod frozen;
mod ghost;
pub mod health;
pub mod hold;
pub(crate) mod mask;
pub mod recalibrate;
mod renorm;
pub(crate) mod scope;
pub mod snapshot;

use burn::tensor::Tensor;

use crate::BatchNorm;
use crate::config::{MaskedOutput, Statistics};
use crate::operands::Operands;
use crate::options::scope::Scope;
use crate::pass::Source;
use crate::statistics::{Observation, Values};

/// A pass of a layer by `source`, over positions of these weights, `[outer, 1 or channels, inner]`.
/// `running` are the layer's statistics before the pass.
pub(crate) fn run<const D: usize>(
    layer: &BatchNorm,
    operands: Operands<D>,
    weights: Option<Tensor<3>>,
    source: Source,
    running: &Values,
) -> Tensor<D> {
    let policy = layer.config.masked_output;
    let passed = (weights.is_some() && policy == MaskedOutput::PassThrough)
        .then(|| operands.input().clone());
    let (output, observation) = match source.by {
        Statistics::Ghost(ghost) => {
            let (output, seen) = ghost::normalize(operands, weights.clone(), ghost);
            (output, Some(seen))
        }
        Statistics::Batch if weights.is_some() => {
            let values = operands.values();
            let trained = operands.train_weighted(weights.clone());
            let seen = Observation::of_weighted_batch(trained.moments, values);
            (trained.output, Some(seen))
        }
        Statistics::Batch => {
            let values = operands.values();
            let trained = layer.kept(operands).train(None);
            (
                trained.output,
                Some(Observation::of_batch(trained.moments, values)),
            )
        }
        Statistics::Running => {
            let examined = scope::current() == Scope::Examine && operands.values() > 0;
            let seen = (source.enter || examined).then(|| {
                let untracked = operands.clone().map_input(Tensor::detach);
                observe(&untracked, untracked.moments(weights.clone()), &weights)
            });
            match seen {
                Some(seen) if examined => {
                    let center = seen.moments.clone();
                    let by_batch = operands
                        .clone()
                        .normalize_by_center(center, weights.clone());
                    let output = operands.normalize_by(running, weights.clone());
                    scope::compare(layer, &output, by_batch, weights.as_ref(), seen);
                    (output, None)
                }
                seen => (operands.normalize_by(running, weights.clone()), seen),
            }
        }
        by => {
            let center = operands.moments(weights.clone());
            let seen = observe(&operands, center.clone(), &weights);
            let (operands, center) = match by {
                Statistics::Blend { batch } => (operands, blend::center(center, running, batch)),
                Statistics::Renorm(renorm) => {
                    let correction =
                        renorm::correction(&renorm, &center, running, operands.epsilon());
                    (operands.corrected(correction), center)
                }
                _ => (operands, center),
            };
            let output = operands.normalize_by_center(center, weights.clone());
            (output, Some(seen))
        }
    };
    if let (true, Some(seen)) = (source.enter, observation) {
        scope::enter(layer, seen);
    }
    match weights {
        Some(weights) => mask::output(policy, output, passed, weights),
        None => output,
    }
}

fn observe<const D: usize>(
    operands: &Operands<D>,
    center: Tensor<2>,
    weights: &Option<Tensor<3>>,
) -> Observation {
    Observation::of_center(center, operands.values(), weights.is_some())
}
