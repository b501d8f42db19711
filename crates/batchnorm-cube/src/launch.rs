//! From checked arguments to launches.
//!
//! A [`Session`] is one call of an operation: it checks buffers, turns cuts into launch arguments and records what was launched. CubeCL's
//! launches are asynchronous and return nothing: a kernel that fails on the device is reported by CubeCL at the next read or synchronisation.
//! What can be known before (types, sizes, bindings, grid) is checked in `support.rs`.

use cubecl::ir::UIntKind;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::activation::Activation;
use crate::args::Weights;
use crate::cost::{Launch, Launches};
use crate::device::Device;
use crate::kernels::numbers::NumbersLaunch;
use crate::kernels::walk::GeometryLaunch;
use crate::strategy::Cut;
use crate::support::{self, Needs, Route};
use crate::{Element, Error, Problem};

/// One call of an operation.
pub(crate) struct Session<'a> {
    pub client: &'a Client,
    pub problem: Problem,
    pub device: Device,
    pub launches: Launches,
    /// Besides the tensor's own.
    pub values: Values,
}

/// What a kernel's numbers are made of; see `kernels/numbers.rs`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Values {
    pub activation: Activation,
    pub epsilon: f64,
    pub keep: f64,
    pub add_mean: f64,
    pub add_variance: f64,
}

impl<'a> Session<'a> {
    /// Checks the problem against the device.
    pub fn new(client: &'a Client, problem: Problem, values: Values) -> Result<Self, Error> {
        values.activation.validate()?;
        Ok(Self {
            client,
            problem,
            device: support::check(client.properties(), &problem)?,
            launches: Launches::default(),
            values,
        })
    }

    /// Checks buffers of the tensor's layout.
    pub fn expect_tensors<'h>(
        &self,
        buffers: impl IntoIterator<Item = (&'static str, Option<&'h Handle>)>,
    ) -> Result<(), Error> {
        expect(buffers, self.problem.span_bytes())
    }

    /// Checks buffers of `rows` values per channel.
    pub fn expect_channels<'h>(
        &self,
        rows: u64,
        buffers: impl IntoIterator<Item = (&'static str, Option<&'h Handle>)>,
    ) -> Result<(), Error> {
        expect(buffers, rows * self.problem.channel_bytes())
    }

    /// Checks the weights of positions.
    pub fn expect_weights(&self, weights: Option<Weights<'_>>) -> Result<(), Error> {
        let handle = weights.map(|weights| weights.handle());
        expect([("weights", handle)], self.weight_bytes(weights))
    }

    /// Checks that a kernel can have as many buffers.
    pub fn expect_bindings(&self, expected: usize) -> Result<(), Error> {
        support::bindings(&self.device, expected, self.device_name())
    }

    /// The cut of a reduction, and how it goes on.
    pub fn route(&self, needs: Needs) -> Result<(Cut, Route), Error> {
        let cut = Cut::reduction(&self.problem, &self.device);
        let route = support::route(&self.device, cut.splits(), needs, self.device_name())?;
        Ok((cut, route))
    }

    fn device_name(&self) -> &str {
        &self.client.properties().identity.name
    }

    /// The grid of a cut.
    pub fn grid(&self, cut: &Cut) -> CubeCount {
        let [x, y, z] = support::grid(cut.cubes(), self.device.grid)
            .expect("the session has been checked against the device's grid");
        CubeCount::Static(x, y, z)
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

    /// The numbers of a kernel.
    pub fn numbers(&self) -> NumbersLaunch {
        let number = |value| InputScalar::new(value, self.arithmetic());
        let [low, slope, offset, high] = self.values.activation.numbers();
        // Squares of what lies between `small` and `large` are normal numbers, and so are those of all others once they are scaled.
        let (most, least, large, scale) = match self.problem.element.accumulator() {
            Element::F64 => (f64::MAX, f64::MIN_POSITIVE, 500, 560),
            _ => (f32::MAX.into(), f32::MIN_POSITIVE.into(), 60, 86),
        };
        let power = |exponent| 2f64.powi(exponent);
        NumbersLaunch::new(
            number(low),
            number(slope),
            number(offset),
            number(high),
            number(self.values.epsilon),
            number(1.0 / self.problem.layout.samples_per_channel() as f64),
            number(self.values.keep),
            number(self.values.add_mean),
            number(self.values.add_variance),
            number(1.0),
            number(most),
            number(least),
            number(power(large)),
            number(power(-large)),
            number(power(-scale)),
            number(power(scale)),
        )
    }

    /// A buffer between two launches, of `values` per channel.
    pub fn scratch(&self, values: usize) -> Handle {
        self.client
            .empty(values * self.problem.channel_bytes() as usize)
    }

    /// Adds to the last launch that it has read the weights.
    pub fn record_weights(&mut self, weights: Option<Weights<'_>>) {
        self.launches.read(self.weight_bytes(weights));
    }

    fn weight_bytes(&self, weights: Option<Weights<'_>>) -> u64 {
        weights.map_or(0, |weights| {
            let own = matches!(weights, Weights::Own(_));
            self.problem.weight_bytes(own)
        })
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

    /// The weights of positions, as a kernel reads them, or an alias of the buffer that was bound as number `other`.
    pub fn bind_weights(
        &mut self,
        weights: Option<Weights<'_>>,
        cut: &Cut,
        other: usize,
    ) -> BufferArg {
        let len = cut.weights(Weights::weighting(weights));
        self.bind_or_alias(weights.map(|weights| weights.handle()), len, other)
    }

    /// How many are bound.
    pub fn bound(&self) -> usize {
        self.bound
    }
}

impl Cut {
    /// The units of a cube, in one dimension: a plane is then a run of neighbours, and `kernels/walk.rs` says where they lie.
    pub fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.shape.units as u32)
    }

    /// The runtime part of the cut.
    pub fn geometry(&self) -> GeometryLaunch {
        let lanes = self.lanes();
        GeometryLaunch::new(
            self.channels,
            self.len,
            self.row,
            self.stride,
            self.channel_stride,
            self.tiles(),
            self.splits(),
            self.share,
            self.shape.units_c,
            lanes,
            lanes % self.row,
            lanes / self.row * self.stride + lanes % self.row,
        )
    }
}
