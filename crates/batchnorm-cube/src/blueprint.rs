//! What a kernel knows when it is compiled.
//!
//! Everything else (sizes, splits, numbers) is passed when it is launched, so that a handful of compiled kernels serves all shapes.

use crate::activation::Pieces;

/// How the units of a cube lie on the tensor; see `kernels/walk.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CubeShape {
    /// Whether a unit's vector lies across channels (`inner == 1`) instead of along one.
    pub columns: bool,
    /// Whether the tensor is read as pairs of values; see `kernels/access.rs`.
    pub packed: bool,
    /// Channels of a cube, and results of its reduction; a power of two.
    pub units_c: usize,
    /// Units of a cube; a power of two.
    pub units: usize,
    /// Neighbouring units that exchange values without a barrier; a power of two, 1 where the device has no plane operations.
    pub plane: usize,
    /// Whether a sweep that writes goes from the end to the beginning.
    pub backwards: bool,
    /// Vectors of a tensor that a unit loads before it computes with them.
    pub at_once: usize,
}

impl CubeShape {
    /// Steps that merge the units' results inside of their planes.
    pub fn plane_steps(&self) -> usize {
        let reach = self.plane.min(self.units);
        (reach / self.units_c).max(1).ilog2() as usize
    }

    /// Steps after those, through shared memory.
    pub fn cube_steps(&self) -> usize {
        (self.units / self.units_c).ilog2() as usize - self.plane_steps()
    }

    /// Partial results that meet in shared memory.
    pub fn parts(&self) -> usize {
        self.units >> self.plane_steps()
    }

    /// The same for a kernel that does not reduce: how many units there are is then a number like others.
    pub fn element_wise(self) -> Self {
        Self {
            units_c: 1,
            units: 1,
            plane: 1,
            ..self
        }
    }
}

/// How two partial results are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Merge {
    /// (count or weight, mean, deviation), by Chan's formula.
    Moments,
    /// Sums, by addition.
    Sums,
}

/// Whether positions have weights, and where a kernel finds that of a value; see `kernels/weighted.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Weighting {
    /// All count the same.
    Even,
    /// All channels have the same: in the order of a channel's positions.
    Shared,
    /// Every channel has its own: where the value lies in its tensor.
    Own,
}

impl Weighting {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        *self != Weighting::Even
    }
}

/// Where a kernel gets the reduced numbers of its channels from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// It reduces the tensor itself: a cube has its channels to itself.
    Tensor,
    /// It merges the results of a few splits.
    Splits,
    /// It needs none, or they lie with the other parameters.
    Parameters,
}

/// What the buffers of a channel's statistics and parameters hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Parameters {
    /// The statistics of a training forward: rows of mean, what rounding took from it, variance, inverse deviation. And gamma and beta.
    Batch,
    /// Those of a weighted forward: the same, and a row of the sum of the weights. And gamma and beta.
    Weighted,
    /// Given ones: rows of mean, what rounding took from it, variance. And gamma and beta.
    Packed,
    /// Given ones, mean and variance in buffers of their own. And gamma and beta.
    Apart,
    /// A mean, and a scale and a shift that are applied as they are.
    Affine,
    /// Rows of mean, what rounding took from it, scale, shift, and the two coefficients of an input gradient.
    Prepared,
}

/// What happens to a single element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ElementBlueprint {
    /// The units.
    pub shape: CubeShape,
    /// The parameters.
    pub parameters: Parameters,
    /// The activation.
    pub pieces: Pieces,
    /// Whether a residual is added before the activation.
    pub residual: bool,
    /// Whether positions have weights.
    pub weighting: Weighting,
}

impl ElementBlueprint {
    /// Whether the statistics were given.
    pub fn given(&self) -> bool {
        matches!(self.parameters, Parameters::Packed | Parameters::Apart)
    }

    /// Whether an output depends on the weight of its position.
    pub fn weighs(&self) -> bool {
        self.weighting.any() && self.given()
    }

    /// The same for values whose weights have been looked at.
    pub fn once_weighed(self) -> Self {
        match self.weighs() {
            true => Self {
                weighting: Weighting::Even,
                ..self
            },
            false => self,
        }
    }
}

/// A training forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TrainBlueprint {
    /// What happens to an element.
    pub element: ElementBlueprint,
    /// Where the moments come from.
    pub source: Source,
    /// Whether there are running statistics.
    pub update: bool,
}

/// A kernel of the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct GradientBlueprint {
    /// What happens to an element.
    pub element: ElementBlueprint,
    /// Where the sums come from.
    pub source: Source,
    /// Whether the input's gradient is written.
    pub input: bool,
    /// Whether the residual's gradient is written.
    pub residual: bool,
}

impl GradientBlueprint {
    /// Whether the statistics were given: no gradient goes through them, so that none has to wait for sums.
    pub fn given(&self) -> bool {
        self.element.given()
    }

    /// Whether what goes through the statistics is shared by weight.
    pub fn shares(&self) -> bool {
        self.element.weighting.any() && !self.given()
    }

    /// Whether tensors are written in the sweep that sums.
    pub fn early(&self) -> bool {
        self.given() && (self.input || self.residual)
    }

    /// Whether tensors are written in a sweep after the sums.
    pub fn late(&self) -> bool {
        (self.input || self.residual) && !(self.given() && self.source == Source::Tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps in planes and through shared memory.
    fn steps(units_c: usize, units: usize, plane: usize) -> (usize, usize) {
        let shape = CubeShape {
            columns: false,
            packed: false,
            units_c,
            units,
            plane,
            backwards: false,
            at_once: 1,
        };
        (shape.plane_steps(), shape.cube_steps())
    }

    #[test]
    fn planes_take_the_steps_that_they_can() {
        assert_eq!(steps(1, 256, 32), (5, 3));
        assert_eq!(steps(8, 256, 32), (2, 3));
        assert_eq!(steps(2, 256, 32), (4, 3));
        // No plane operations; a plane that is all columns; a cube that is smaller than a plane; nothing to merge.
        assert_eq!(steps(1, 256, 1), (0, 8));
        assert_eq!(steps(32, 256, 32), (0, 3));
        assert_eq!(steps(1, 8, 32), (3, 0));
        assert_eq!(steps(8, 8, 32), (0, 0));
    }
}
