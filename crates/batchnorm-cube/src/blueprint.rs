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
    /// Units side by side; a power of two.
    pub units_x: usize,
    /// Units on different outer indices; a power of two.
    pub units_y: usize,
}

impl CubeShape {
    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.units_x * self.units_y
    }

    /// Results of a cube's reduction: one, or one per column of units.
    pub fn results(&self) -> usize {
        match self.columns {
            true => self.units_x,
            false => 1,
        }
    }

    /// Steps of a tree that merges the units' results.
    pub fn merge_steps(&self) -> usize {
        (self.units() / self.results()).ilog2() as usize
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
