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
pub(crate) mod weights;

use burn::tensor::Tensor;

use crate::BatchNorm;
use crate::config::Statistics;
use crate::layer::Source;
use crate::operands::Operands;
use crate::options::scope::Scope;
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
    let input = operands.input().clone();
    let (output, observation) = match source.by {
        Statistics::Ghost(ghost) => {
            let (output, seen) = ghost::normalize(operands, weights.clone(), ghost);
            (output, Some(seen))
        }
        Statistics::Batch if weights.is_none() => {
            let values = operands.values();
            let trained = operands.train(None);
            let seen = Observation::of_batch(trained.moments, values);
            (trained.output, Some(seen))
        }
        Statistics::Running if !source.enter && scope::current() != Scope::Examine => {
            let operands = mask::sane(operands, weights.as_ref(), &running.mean);
            (operands.normalize_by(running), None)
        }
        by => {
            let center = operands.moments(weights.clone());
            let seen = Observation::of_center(
                center.clone().detach(),
                operands.values(),
                weights.is_some(),
            );
            let mean = center.clone().detach();
            let mean = mean
                .slice([0..1, 0..operands.view().channels])
                .flatten::<1>(0, 1);
            let operands = mask::sane(operands, weights.as_ref(), &mean);
            let output = match by {
                Statistics::Blend { batch } => {
                    operands.normalize_by_center(blend::center(center, running, batch))
                }
                Statistics::Renorm(renorm) => {
                    let correction =
                        renorm::correction(&renorm, &center, running, operands.epsilon());
                    operands.corrected(correction).normalize_by_center(center)
                }
                Statistics::Running => {
                    scope::compare(layer, &operands, &center, running, &seen);
                    operands.normalize_by(running)
                }
                Statistics::Batch | Statistics::Ghost(_) => operands.normalize_by_center(center),
            };
            (output, Some(seen))
        }
    };
    if let (true, Some(seen)) = (source.enter, observation) {
        scope::enter(layer, seen);
    }
    match weights {
        Some(weights) => mask::output(layer.config.masked_output, output, input, weights),
        None => output,
    }
}
