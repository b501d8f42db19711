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
    /// Units on neighbouring channels, and results of a reduction; a power of two.
    pub units_c: usize,
    /// Units along a row of a channel; a power of two.
    pub units_x: usize,
    /// Units on different outer indices; a power of two.
    pub units_y: usize,
    /// Neighbouring units that exchange values without a barrier; a power of two, 1 where the device has no plane operations.
    pub plane: usize,
}

impl CubeShape {
    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.units_c * self.units_x * self.units_y
    }

    /// Steps that merge the units' results inside of their planes.
    pub fn plane_steps(&self) -> usize {
        let reach = self.plane.min(self.units());
        (reach / self.units_c).max(1).ilog2() as usize
    }

    /// Steps after those, through shared memory.
    pub fn cube_steps(&self) -> usize {
        (self.units() / self.units_c).ilog2() as usize - self.plane_steps()
    }
}

/// How two partial results are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Merge {
    /// (count, mean, M2), by Chan's formula.
    Moments,
    /// Sums, by addition.
    Sums,
}

/// The gradient that is computed together with the sums, without knowing them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum EarlyGrad {
    /// None.
    None,
    /// `g * scale`: the statistics were given, not computed from this input.
    Scaled,
}

/// What the parameter buffers of an element-wise kernel mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ElementBlueprint {
    /// The units.
    pub shape: CubeShape,
    /// The center is three rows (mean, what rounding took from it, inverse deviation) and the scale is gamma; otherwise the center is the
    /// mean alone and the scale is applied as it is.
    pub saved: bool,
    /// The activation.
    pub pieces: Pieces,
    /// Whether a residual is added before the activation.
    pub residual: bool,
}

/// A kernel that sums gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SumsBlueprint {
    /// How the inputs are read.
    pub element: ElementBlueprint,
    /// What is written in the same sweep.
    pub early: EarlyGrad,
    /// Whether the gradient of the residual is written in the same sweep.
    pub residual_grad: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps in planes and through shared memory.
    fn steps(units_c: usize, units_x: usize, units_y: usize, plane: usize) -> (usize, usize) {
        let shape = CubeShape {
            columns: units_x == 1,
            packed: false,
            units_c,
            units_x,
            units_y,
            plane,
        };
        (shape.plane_steps(), shape.cube_steps())
    }

    #[test]
    fn planes_take_the_steps_that_they_can() {
        assert_eq!(steps(1, 64, 4, 32), (5, 3));
        assert_eq!(steps(8, 1, 32, 32), (2, 3));
        assert_eq!(steps(2, 4, 32, 32), (4, 3));
        // No plane operations; a plane that is all columns; a cube that is smaller than a plane; nothing to merge.
        assert_eq!(steps(1, 64, 4, 1), (0, 8));
        assert_eq!(steps(32, 1, 8, 32), (0, 3));
        assert_eq!(steps(1, 4, 2, 32), (3, 0));
        assert_eq!(steps(8, 1, 1, 32), (0, 0));
    }
}
