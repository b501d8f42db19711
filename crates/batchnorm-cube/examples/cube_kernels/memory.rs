//! Tensors on the device, so many that their data does not lie in a cache when it is read again.

use batchnorm_cube::{Element, Problem};
use cubecl::prelude::*;
use cubecl::server::Handle;
use half::{bf16, f16};

/// Bytes that the tensors of one kind take together: more than the caches of a GPU.
const COLD: usize = 128 << 20;
/// The most tensors of one kind.
const MOST: usize = 16;
/// Tensors begin at multiples of it, as every device can bind them.
const ALIGNMENT: usize = 512;

/// Three inputs of one type, to be cut into tensors: x, dy and a residual.
pub struct Memory {
    inputs: [Handle; 3],
    bytes: usize,
}

impl Memory {
    /// For tensors of at most `largest` bytes; where `cold`, at least [`COLD`] bytes.
    pub fn new(client: &Client, element: Element, largest: usize, cold: bool) -> Self {
        let bytes = largest.next_multiple_of(ALIGNMENT);
        let bytes = match cold {
            true => bytes.max(COLD),
            false => bytes,
        };
        let inputs = [1, 2, 3].map(|seed| client.create_from_slice(&values(element, seed, bytes)));
        Self { inputs, bytes }
    }

    /// How many tensors there are for a problem, and where: x, dy, residual of each.
    pub fn tensors(&self, problem: &Problem) -> Vec<[Handle; 3]> {
        let size = problem.layout.span() * problem.element.size();
        let stride = size.next_multiple_of(ALIGNMENT);
        let count = (self.bytes / stride).clamp(1, MOST);
        let part = |input: &Handle, at: usize| {
            let rest = self.bytes - at * stride - size;
            input
                .clone()
                .offset_start((at * stride) as u64)
                .offset_end(rest as u64)
        };
        (0..count)
            .map(|at| self.inputs.each_ref().map(|input| part(input, at)))
            .collect()
    }

    /// Pairs of buffers of so many bytes, to copy between.
    pub fn pairs(&self, client: &Client, bytes: usize) -> Vec<[Handle; 2]> {
        let stride = bytes.next_multiple_of(ALIGNMENT);
        let count = (self.bytes / stride).clamp(1, MOST);
        let [x, ..] = &self.inputs;
        (0..count)
            .map(|at| {
                [
                    x.clone().offset_start((at * stride) as u64),
                    client.empty(bytes),
                ]
            })
            .collect()
    }

    /// Bytes of an input.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Numbers of mean 0.1 and deviation 1 that repeat after a prime number of values.
fn values(element: Element, seed: u32, bytes: usize) -> Vec<u8> {
    const PERIOD: u32 = 1_048_573;
    let mut state = seed.wrapping_mul(0x9E37_79B9);
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32
    };
    let period: Vec<u8> = (0..PERIOD)
        .map(|_| 0.1 + (uniform() + uniform() + uniform() - 1.5) * 2.0)
        .flat_map(|value| match element {
            Element::F16 => f16::from_f32(value).to_ne_bytes().to_vec(),
            Element::Bf16 => bf16::from_f32(value).to_ne_bytes().to_vec(),
            Element::F32 => value.to_ne_bytes().to_vec(),
            Element::F64 => f64::from(value).to_ne_bytes().to_vec(),
        })
        .collect();
    period.into_iter().cycle().take(bytes).collect()
}
