//! Who works on what: the cut of a tensor into cubes, from its layout and from properties of the device.
//!
//! # Reductions
//!
//! - A channel goes to one cube where that keeps the device busy, or where the tensor is so small that launches cost more than the work:
//!   then one kernel can do everything (`splits == 1`).
//! - Otherwise its vectors are split evenly over the grid, until there are enough cubes; partial results wait in a scratch buffer and are
//!   merged in a fixed order.
//! - `inner == 1` is walked by columns: units along channels, vectors across them. On a GPU a cube takes several channels too where rows are
//!   short, so that it reads memory that lies together.
//!
//! # Element-wise kernels
//!
//! The same cut with as many splits as the device likes.
//!
//! # No walk is long
//!
//! However few channels there are and whatever the device likes, no unit walks more than [`MOST_STEPS`] vectors in a sweep.
//!
//! What a device likes is told in `device.rs`, and in numbers for GPUs in `tuning.rs`.

use crate::blueprint::{CubeShape, Weighting};
use crate::device::Device;
use crate::problem::Problem;

/// Vectors that a unit walks over at most, in a sweep. Mesa's software driver ends all loops of a unit after 65,535 iterations together,
/// without a word; a kernel sweeps at most three times, with one outer iteration per 64 vectors. A watchdog would be the next limit.
pub(crate) const MOST_STEPS: usize = 8192;
/// Vectors per unit below which a channel is not split further for a software device; measured with Mesa's Vulkan.
const CPU_WORK: usize = 64;
/// Bytes of a tensor up to which it is not split for a software device; measured with Mesa's Vulkan.
const CPU_SMALL: u64 = 1 << 17;

/// For which kind of device the work is cut. Every choice gives right results on every device; they differ in speed and in rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Strategy {
    /// The kind that the device's properties show.
    #[default]
    Auto,
    /// Many units, wide cubes.
    Gpu,
    /// Few units, narrow cubes, values loaded in pairs.
    Software,
}

/// A tensor cut into cubes. All lengths are in vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The units of a cube.
    pub shape: CubeShape,
    /// Elements of a vector of the tensor.
    pub vector: usize,
    /// Vectors of channel parameters.
    pub channels: usize,
    /// Vectors of a channel.
    pub len: usize,
    /// Vectors of a channel in a row.
    pub row: usize,
    /// From a row of a channel to its next one.
    pub stride: usize,
    /// From a row of a channel to that of the next channel.
    pub channel_stride: usize,
    /// Vectors of a split; a multiple of the lanes.
    pub share: usize,
    /// Vectors of the tensor in memory, with gaps.
    pub span: usize,
}

impl Cut {
    /// Elements of a vector of channel parameters.
    pub fn parameter_vector(&self) -> usize {
        match self.shape.columns {
            true => self.vector,
            false => 1,
        }
    }

    /// Elements of a vector of the positions' weights.
    pub fn weight_vector(&self, weighting: Weighting) -> usize {
        match weighting {
            Weighting::Own => self.vector,
            // A vector across channels is one position.
            Weighting::Shared if self.shape.columns => 1,
            Weighting::Shared => self.vector,
            // None are read.
            Weighting::Even => self.parameter_vector(),
        }
    }

    /// Vectors of the positions' weights.
    pub fn weights(&self, weighting: Weighting) -> usize {
        match weighting {
            Weighting::Own => self.span,
            Weighting::Shared | Weighting::Even => self.len,
        }
    }

    /// Values of a vector of the tensor as it lies in memory.
    pub fn stored_vector(&self) -> usize {
        match self.shape.packed {
            true => self.vector / 2,
            false => self.vector,
        }
    }

    /// Units on the same channel.
    pub fn lanes(&self) -> usize {
        self.shape.units / self.shape.units_c
    }

    /// Groups of channels.
    pub fn tiles(&self) -> usize {
        self.channels.div_ceil(self.shape.units_c)
    }

    /// Cubes that work on the same channels.
    pub fn splits(&self) -> usize {
        self.len.div_ceil(self.share)
    }

    /// Cubes with work.
    pub fn cubes(&self) -> usize {
        self.tiles() * self.splits()
    }

    /// Vectors that a unit walks over at most.
    #[cfg(test)]
    pub fn steps(&self) -> usize {
        self.share / self.lanes()
    }

    /// For a reduction of every channel.
    pub fn reduction(problem: &Problem, device: &Device) -> Self {
        let cut = Self::unsplit(problem, device);
        let small = match device.software {
            true => CPU_SMALL,
            false => device.tuning.small,
        };
        let idle = cut.tiles() < device.cubes / 2 && problem.tensor_bytes() > small;
        match idle {
            true => cut.split(device.cubes.div_ceil(cut.tiles()), device),
            false => cut.split(1, device),
        }
    }

    /// For an element-wise kernel.
    pub fn element_wise(problem: &Problem, device: &Device) -> Self {
        let cut = Self::unsplit(problem, device);
        let enough = match device.software {
            true => device.cubes,
            false => device.cubes * device.tuning.element_wise,
        };
        cut.split(enough.div_ceil(cut.tiles()), device)
    }

    /// For the merge of the splits' results, a tensor of `[splits][channels]`.
    pub fn finish(splits: usize, channels: usize, device: &Device) -> Self {
        let vector = widest(channels, 0, device.vector.min(4));
        let channels = channels / vector;
        let lanes = ceil_power(splits).min(device.units).min(32);
        let units_c = ceil_power(channels).min(device.units / lanes).min(32);
        Self {
            shape: CubeShape {
                columns: true,
                packed: false,
                units_c,
                units: lanes * units_c,
                plane: device.plane,
                backwards: !device.software,
                at_once: device.at_once(),
            },
            vector,
            channels,
            len: splits,
            row: 1,
            stride: channels,
            channel_stride: 1,
            share: splits.next_multiple_of(lanes),
            span: splits * channels,
        }
    }

    fn unsplit(problem: &Problem, device: &Device) -> Self {
        let layout = problem.layout.merged();
        let columns = layout.inner == 1 && layout.channel_stride == 1 && layout.channels > 1;
        // Where there is nothing to step over, the stride does not matter.
        let outer_stride = match layout.outer {
            1 => 0,
            _ => layout.outer_stride,
        };
        let channel_stride = match layout.channels {
            1 => 0,
            _ => layout.channel_stride,
        };
        // A vector of pairs holds twice as many values.
        let limit = match device.pairs {
            true => 2 * device.vector,
            false => device.vector,
        };
        let vector = match columns {
            true => widest(layout.channels, outer_stride, limit),
            false => widest(layout.inner, outer_stride | channel_stride, limit),
        };
        let (channels, row, channel_stride) = match columns {
            true => (layout.channels / vector, 1, 1),
            false => (
                layout.channels,
                layout.inner / vector,
                channel_stride / vector,
            ),
        };
        let len = layout.outer * row;
        let (units_c, units) = match device.software {
            // Barriers cost more than idle units: a unit has its channels to itself.
            true if columns => {
                let units_c = ceil_power(channels).min(device.units);
                (units_c, units_c)
            }
            true => (1, device.units.min(ceil_power(len))),
            false => {
                let span = (device.tuning.span / vector).min(device.units);
                let units_c = (span / ceil_power(row)).clamp(1, ceil_power(channels));
                let units =
                    floor_power((units_c * len / device.tuning.work).max(32)).min(device.units);
                (units_c.min(units), units)
            }
        };
        let mut cut = Self {
            shape: CubeShape {
                columns,
                packed: device.pairs && vector.is_multiple_of(2),
                units_c,
                units,
                plane: device.plane,
                backwards: !device.software,
                at_once: device.at_once(),
            },
            vector,
            channels,
            len,
            row,
            stride: (outer_stride / vector).max(row),
            channel_stride,
            share: len,
            span: layout.span().div_ceil(vector),
        };
        while cut.shared(problem) > device.shared && cut.shape.units > cut.shape.units_c {
            cut.shape.units /= 2;
        }
        cut
    }

    /// Bytes of shared memory that a reduction takes: four vectors for each partial result.
    fn shared(&self, problem: &Problem) -> usize {
        let values = self.shape.parts() * 4 * self.parameter_vector();
        values * problem.element.accumulator().size()
    }

    /// Into at most `wanted` splits, each with work for all units, or into as many as keep every walk short.
    fn split(mut self, wanted: usize, device: &Device) -> Self {
        let work = match device.software {
            true => CPU_WORK,
            false => device.tuning.work,
        };
        let steps = self.len.div_ceil(self.lanes());
        let splits = wanted.min(steps / work).max(steps.div_ceil(MOST_STEPS));
        self.share = steps.div_ceil(splits.max(1)) * self.lanes();
        self
    }
}

/// The widest vector of at most `limit` elements that divides the length and all strides, whose bits `strides` has.
fn widest(len: usize, strides: usize, limit: usize) -> usize {
    let mut vector = floor_power(limit);
    while !(len | strides).is_multiple_of(vector) {
        vector /= 2;
    }
    vector
}

pub(crate) fn floor_power(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

fn ceil_power(n: usize) -> usize {
    n.next_power_of_two()
}

#[cfg(test)]
mod tests;
