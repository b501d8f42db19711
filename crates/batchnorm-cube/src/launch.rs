//! From checked arguments to launches.
//!
//! A [`Session`] is one call of an operation: it checks buffers, turns cuts into launch arguments and records what was launched. CubeCL's
//! launches are asynchronous and return nothing: a kernel that fails on the device is reported by CubeCL at the next read or synchronisation.
//! What can be known before (types, bindings, grid) is checked here.

use cubecl::ir::UIntKind;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::activation::{Activation, NumbersLaunch};
use crate::cost::{Launch, Launches};
use crate::device::Device;
use crate::kernels::walk::GeometryLaunch;
use crate::strategy::Cut;
use crate::{Error, Problem};

/// One call of an operation.
pub(crate) struct Session<'a> {
    pub client: &'a Client,
    pub problem: Problem,
    pub device: Device,
    pub launches: Launches,
}

impl<'a> Session<'a> {
    /// Checks the problem against the device.
    pub fn new(client: &'a Client, problem: Problem) -> Result<Self, Error> {
        problem.validate(client)?;
        Ok(Self {
            client,
            problem,
            device: Device::of(client, &problem),
            launches: Launches::default(),
        })
    }

    /// Checks buffers of the tensor's shape.
    pub fn expect_tensors<'h>(
        &self,
        buffers: impl IntoIterator<Item = (&'static str, Option<&'h Handle>)>,
    ) -> Result<(), Error> {
        expect(buffers, self.problem.tensor_bytes())
    }

    /// Checks buffers of `rows` values per channel.
    pub fn expect_channels<'h>(
        &self,
        rows: u64,
        buffers: impl IntoIterator<Item = (&'static str, Option<&'h Handle>)>,
    ) -> Result<(), Error> {
        expect(buffers, rows * self.problem.channel_bytes())
    }

    /// Checks that a kernel can have as many buffers.
    pub fn expect_bindings(&self, expected: usize) -> Result<(), Error> {
        match expected <= self.device.bindings {
            true => Ok(()),
            false => Err(Error::Bindings {
                expected,
                got: self.device.bindings,
                device: self.client.properties().identity.name.clone(),
            }),
        }
    }

    /// The grid for `cubes` cubes, spread over as many dimensions as the device's limits ask for. It can be a little larger.
    pub fn grid(&self, cubes: usize) -> Result<CubeCount, Error> {
        let (x, y, z) = self.client.properties().hardware.max_cube_count;
        let [x, y, z] = [x, y, z].map(|limit| limit as usize);
        let width = cubes.min(x);
        let height = cubes.div_ceil(width).min(y);
        let depth = cubes.div_ceil(width * height);
        match depth <= z {
            true => Ok(CubeCount::Static(width as u32, height as u32, depth as u32)),
            false => Err(Error::Grid {
                expected: cubes,
                limit: x.saturating_mul(y).saturating_mul(z),
                device: self.client.properties().identity.name.clone(),
            }),
        }
    }

    /// The types of the tensor in memory and of the arithmetic.
    pub fn types(&self, cut: &Cut) -> [ElemType; 2] {
        let stored = match cut.shape.packed {
            true => ElemType::UInt(UIntKind::U64),
            false => self.problem.element.elem_type(),
        };
        [stored, self.arithmetic()]
    }

    /// The type of the arithmetic.
    pub fn arithmetic(&self) -> ElemType {
        self.problem.element.accumulator().elem_type()
    }

    /// A number of the type of the arithmetic.
    pub fn number(&self, value: f64) -> InputScalar {
        InputScalar::new(value, self.arithmetic())
    }

    /// The numbers of an activation.
    pub fn numbers(&self, activation: Activation) -> NumbersLaunch {
        let [low, slope, offset, high] = activation.numbers().map(|value| self.number(value));
        NumbersLaunch::new(low, slope, offset, high)
    }

    /// A buffer between two launches, of `values` per channel.
    pub fn scratch(&self, values: usize) -> Handle {
        self.client
            .empty(values * self.problem.channel_bytes() as usize)
    }

    /// Notes a launch that reads and writes so many tensors and so many vectors of one value per channel.
    pub fn record(&mut self, kernel: &'static str, read: (usize, usize), written: (usize, usize)) {
        let [read, written] = [read, written].map(|(tensors, vectors)| {
            tensors as u64 * self.problem.tensor_bytes()
                + vectors as u64 * self.problem.channel_bytes()
        });
        self.launches.push(Launch {
            kernel,
            read,
            written,
        });
    }
}

fn expect<'h>(
    buffers: impl IntoIterator<Item = (&'static str, Option<&'h Handle>)>,
    expected: u64,
) -> Result<(), Error> {
    for (name, handle) in buffers {
        let got = handle.map_or(expected, Handle::size_in_used);
        if got < expected {
            return Err(Error::Length {
                name,
                expected,
                got,
            });
        }
    }
    Ok(())
}

/// The buffers of a launch, in the order of the kernel's parameters.
///
/// A parameter that a kernel does not use, or that is the same memory as an earlier one, is an alias of that one: it takes no binding, and
/// binding memory twice, once for writing, is an error on wgpu.
#[derive(Default)]
pub(crate) struct Buffers {
    bound: usize,
}

impl Buffers {
    /// The next buffer, of `len` vectors.
    pub fn bind(&mut self, handle: &Handle, len: usize) -> BufferArg {
        self.bound += 1;
        // SAFETY: `Session::expect_tensors` and `expect_channels` have checked that the buffer holds the layout's elements, of which `len`
        // vectors are a cut; scratch buffers are allocated for the cut. CubeCL takes the length in vectors.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    }

    /// The next buffer, or an alias of the buffer that was bound as number `other`.
    pub fn bind_or_alias(
        &mut self,
        handle: Option<&Handle>,
        len: usize,
        other: usize,
    ) -> BufferArg {
        debug_assert!(other < self.bound, "an alias needs a bound buffer");
        match handle {
            Some(handle) => self.bind(handle, len),
            None => BufferArg::alias(other, len),
        }
    }

    /// How many are bound.
    pub fn bound(&self) -> usize {
        self.bound
    }
}

impl Cut {
    /// The units of a cube, in one dimension: a plane is then a run of neighbours, and `kernels/walk.rs` says where they lie.
    pub fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.shape.units() as u32)
    }

    /// The runtime part of the cut.
    pub fn geometry(&self) -> GeometryLaunch {
        GeometryLaunch::new(
            self.outer,
            self.channels,
            self.row,
            self.tiles,
            self.outer_share,
            self.row_share,
            self.row_splits(),
        )
    }

    /// Vectors of the tensor.
    pub fn tensor_len(&self) -> usize {
        self.outer * self.channels * self.row
    }
}
