//! Who works on what: the cut of a tensor into cubes, from its shape and from properties of the device.
//!
//! # Reductions
//!
//! - A channel goes to one cube where that keeps the device busy, or where the tensor is so small that launches cost more than the work:
//!   then one kernel can do everything (`splits == 1`).
//! - Otherwise it is split over the grid, outer indices first and then the inner ones, until there are enough cubes; partial results wait in a
//!   scratch buffer and are merged in a fixed order.
//! - `inner == 1` is walked by columns: units along channels, vectors across them. On a GPU a cube takes several channels too where `inner`
//!   is small, so that it reads memory that lies together.
//!
//! # Element-wise kernels
//!
//! The same cut with as many splits as the device likes.
//!
//! What a device likes is told in `device.rs`.

use crate::blueprint::CubeShape;
use crate::device::Device;
use crate::problem::{Layout, Problem};

/// Vectors per unit below which a GPU's cube is made smaller or a channel not split further.
const GPU_WORK: usize = 4;
/// Values in a row that a GPU's cube reads at least, of several channels where one has less: 128 bytes of `f32`, four sectors of its cache.
const GPU_SPAN: usize = 32;
/// Elements below which splitting costs more launches than it gains time.
const SMALL: usize = 1 << 15;

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

/// A tensor cut into cubes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The units of a cube.
    pub shape: CubeShape,
    /// Elements of a vector of the tensor.
    pub vector: usize,
    /// Rows of the tensor.
    pub outer: usize,
    /// Vectors of channel parameters.
    pub channels: usize,
    /// Vectors of a channel in a row.
    pub row: usize,
    /// Tiles side by side.
    pub tiles: usize,
    /// Rows of a split.
    pub outer_share: usize,
    /// Vectors of a row in a split.
    pub row_share: usize,
}

impl Cut {
    /// Elements of a vector of channel parameters.
    pub fn parameter_vector(&self) -> usize {
        match self.shape.columns {
            true => self.vector,
            false => 1,
        }
    }

    /// Values of a vector of the tensor as it lies in memory.
    pub fn stored_vector(&self) -> usize {
        match self.shape.packed {
            true => self.vector / 2,
            false => self.vector,
        }
    }

    /// Splits of a row.
    pub fn row_splits(&self) -> usize {
        self.row.div_ceil(self.row_share)
    }

    /// Cubes that work on the same channels.
    pub fn splits(&self) -> usize {
        self.outer.div_ceil(self.outer_share) * self.row_splits()
    }

    /// Cubes with work.
    pub fn cubes(&self) -> usize {
        self.tiles * self.splits()
    }

    /// For a reduction of every channel.
    pub fn reduction(problem: &Problem, device: &Device) -> Self {
        let cut = Self::unsplit(problem, device);
        let idle = cut.tiles < device.cubes / 2 && problem.layout.len() > SMALL;
        match idle {
            true => cut.split(device.cubes.div_ceil(cut.tiles), device),
            false => cut,
        }
    }

    /// For an element-wise kernel.
    pub fn element_wise(problem: &Problem, device: &Device) -> Self {
        let cut = Self::unsplit(problem, device);
        // On a GPU short cubes balance the load.
        let enough = match device.software {
            true => device.cubes,
            false => device.cubes * 4,
        };
        cut.split(enough.div_ceil(cut.tiles), device)
    }

    /// For the merge of the splits' results, a tensor of `[splits][channels]`.
    pub fn finish(splits: usize, channels: usize, device: &Device) -> Self {
        let vector = widest(channels, device.vector);
        let channels = channels / vector;
        let units_y = ceil_power(splits).min(device.units).min(32);
        let units_c = ceil_power(channels).min(device.units / units_y).min(32);
        Self {
            shape: CubeShape {
                columns: true,
                packed: false,
                units_c,
                units_x: 1,
                units_y,
                plane: device.plane,
            },
            vector,
            outer: splits,
            channels,
            row: 1,
            tiles: channels.div_ceil(units_c),
            outer_share: splits,
            row_share: 1,
        }
    }

    fn unsplit(problem: &Problem, device: &Device) -> Self {
        let Layout {
            outer,
            channels,
            inner,
        } = problem.layout;
        let columns = inner == 1;
        // A vector of pairs holds twice as many values.
        let limit = match device.pairs {
            true => 2 * device.vector,
            false => device.vector,
        };
        let vector = match columns {
            true => widest(channels, limit),
            false => widest(inner, limit),
        };
        let (channels, row) = match columns {
            true => (channels / vector, 1),
            false => (channels, inner / vector),
        };
        let side = ceil_power(channels);
        let length = ceil_power(row).min(device.units);
        let (units_c, units) = match device.software {
            // Barriers cost more than idle units: a unit has its channels to itself.
            true if columns => (side.min(device.units), side.min(device.units)),
            true => (1, device.units),
            false => {
                let span = (GPU_SPAN / vector).min(device.units);
                let units_c = (span / length).clamp(1, side);
                let units = floor_power((units_c * outer * row / GPU_WORK).max(32));
                (units_c, units.min(device.units))
            }
        };
        let units_x = length.min(units);
        Self {
            shape: CubeShape {
                columns,
                packed: device.pairs && vector.is_multiple_of(2),
                units_c,
                units_x,
                units_y: (units / (units_c * units_x)).min(ceil_power(outer)),
                plane: device.plane,
            },
            vector,
            outer,
            channels,
            row,
            tiles: channels.div_ceil(units_c),
            outer_share: outer,
            row_share: row,
        }
    }

    /// Into at most `wanted` splits, each with work for all units.
    fn split(mut self, wanted: usize, device: &Device) -> Self {
        let work = match device.software {
            true => 64,
            false => GPU_WORK,
        };
        let CubeShape {
            units_x, units_y, ..
        } = self.shape;
        let per_row = self.row.div_ceil(units_x);
        let rows = (work / per_row).max(1) * units_y;
        let outer_splits = wanted.min(self.outer / rows).max(1);
        self.outer_share = self.outer.div_ceil(outer_splits);
        let vectors = work.div_ceil(self.outer_share.div_ceil(units_y)) * units_x;
        let row_splits = (wanted / outer_splits).min(self.row / vectors).max(1);
        self.row_share = self.row.div_ceil(row_splits);
        self
    }
}

/// The widest vector of at most `limit` elements that divides `len`.
fn widest(len: usize, limit: usize) -> usize {
    let mut vector = limit;
    while !len.is_multiple_of(vector) {
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
mod tests {
    use super::*;
    use crate::device::{CPU_CUBES, GPU_CUBES};
    use crate::problem::Element;

    fn device(software: bool) -> Device {
        Device {
            software,
            units: if software { 8 } else { 256 },
            plane: if software { 1 } else { 32 },
            cubes: if software { CPU_CUBES } else { 132 * GPU_CUBES },
            bindings: 31,
            vector: 4,
            pairs: software,
        }
    }

    fn problem(outer: usize, channels: usize, inner: usize) -> Problem {
        let layout = Layout {
            outer,
            channels,
            inner,
        };
        Problem::new(layout, Element::F32)
    }

    /// The tiles, the splits and the rows of units cover every vector once.
    #[test]
    fn cuts_cover_the_tensor() {
        for software in [false, true] {
            let device = device(software);
            for outer in [1, 2, 7, 64, 1000] {
                for channels in [1, 3, 4, 50, 512] {
                    for inner in [1, 2, 5, 49, 64, 3136] {
                        let problem = problem(outer, channels, inner);
                        for cut in [
                            Cut::reduction(&problem, &device),
                            Cut::element_wise(&problem, &device),
                        ] {
                            let len = cut.tensor_len() * cut.vector;
                            assert_eq!(len, problem.layout.len(), "{cut:?}");
                            assert!(cut.shape.units() <= device.units, "{cut:?}");
                            assert!(cut.outer_share * cut.outer.div_ceil(cut.outer_share) >= outer);
                            assert!(cut.row_share * cut.row_splits() >= cut.row);
                            assert!(cut.tiles * cut.shape.units_c >= cut.channels, "{cut:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn many_channels_are_whole_and_few_are_split() {
        let gpu = device(false);
        assert_eq!(Cut::reduction(&problem(32, 512, 784), &gpu).splits(), 1);
        let cut = Cut::reduction(&problem(32, 64, 3136), &gpu);
        assert!(cut.cubes() >= gpu.cubes / 2, "{cut:?}");
        let cut = Cut::reduction(&problem(1024, 512, 1), &gpu);
        assert!(cut.shape.columns && cut.splits() > 1, "{cut:?}");
        assert_eq!(Cut::reduction(&problem(32, 50, 1), &gpu).splits(), 1);

        let cpu = device(true);
        assert_eq!(Cut::reduction(&problem(32, 64, 3136), &cpu).splits(), 1);
        assert!(Cut::reduction(&problem(1, 1, 100_000), &cpu).splits() > 1);
    }

    /// Rows that are shorter than a sector of memory share a cube, on a GPU; a longer one has it for itself.
    #[test]
    fn short_rows_stand_side_by_side() {
        let beside = |inner, device| {
            let shape = Cut::reduction(&problem(64, 32, inner), device).shape;
            (shape.units_c, shape.units_x)
        };
        let gpu = device(false);
        assert_eq!(
            [1, 2, 3, 4].map(|n| beside(n, &gpu)),
            [(8, 1), (16, 1), (8, 4), (8, 1)]
        );
        assert_eq!(
            [7, 16, 49, 784].map(|n| beside(n, &gpu)),
            [(4, 8), (2, 4), (1, 64), (1, 256)]
        );
        let cpu = device(true);
        assert_eq!(
            [1, 3, 4, 49].map(|n| beside(n, &cpu)),
            [(4, 1), (1, 4), (1, 1), (1, 8)]
        );
    }

    #[test]
    fn a_small_finish_is_one_cube() {
        let cut = Cut::finish(7, 3, &device(false));
        assert_eq!((cut.cubes(), cut.splits(), cut.vector), (1, 1, 1));
    }
}
