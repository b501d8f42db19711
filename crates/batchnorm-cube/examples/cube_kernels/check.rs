//! Whether what is timed is done: a device that could not allocate a tensor, say, is fast, and not every runtime says so.
//!
//! The tests hold every value against a reference. Here it is enough that the results are those of the input at hand.

use batchnorm_cube::{Activation, Element, Problem};
use cubecl::prelude::*;
use cubecl::server::Handle;
use half::{bf16, f16};

use crate::training::Training;

/// Values of the beginning and of the end of a tensor that are looked at.
const SOME: usize = 64;

/// Runs every pass once and looks at what it wrote.
pub fn check(
    client: &Client,
    problem: &Problem,
    step: &Training<'_>,
    x: &Handle,
    activation: Activation,
    residual: Option<&Handle>,
) -> Result<(), String> {
    step.forward();
    step.backward();
    let all = |handle| values(client, Element::F32, handle, 0, usize::MAX);
    let statistics = all(&step.statistics)?;
    // The inputs have mean 0.1 and deviation 1; statistics that were not written are NaN.
    let off = 8.0 / (problem.layout.samples_per_channel() as f32).sqrt() + 0.01;
    let channels = problem.layout.channels;
    for (name, row, expected) in [("mean", 0, 0.1), ("variance", 2, 1.0)] {
        for got in &statistics[row * channels..][..channels] {
            let near = (got - expected).abs() <= off;
            if !near {
                return Err(format!("a {name} is {got}, expected about {expected}"));
            }
        }
    }
    for (name, gradient) in ["gamma", "beta"].into_iter().zip(&step.gradients) {
        if !all(gradient)?.iter().all(|value| value.is_finite()) {
            return Err(format!("the gradient of {name} is not finite"));
        }
    }

    step.inference();
    let (element, span) = (problem.element, problem.layout.span());
    for at in [0, span.saturating_sub(SOME)] {
        let part = |handle| values(client, element, handle, at, SOME);
        let added = residual.map(part).transpose()?;
        for (i, (x, y)) in part(x)?.into_iter().zip(part(&step.y)?).enumerate() {
            // Running statistics, gamma and beta are 1.
            let sum = x + added.as_ref().map_or(0.0, |added| added[i]);
            let expected = match activation {
                Activation::Relu => sum.max(0.0),
                _ => sum,
            };
            let near = (y - expected).abs() <= 0.02 * expected.abs().max(1.0);
            if !near {
                return Err(format!("y[{}] is {y}, expected {expected}", at + i));
            }
        }
    }
    Ok(())
}

/// Whether the second buffer begins and ends as the first, of so many bytes.
pub fn check_copy(client: &Client, [from, to]: &[Handle; 2], bytes: usize) -> Result<(), String> {
    let span = bytes / 4;
    for at in [0, span - SOME.min(span)] {
        let part = |handle| values(client, Element::F32, handle, at, SOME);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        if bits(part(from)?) != bits(part(to)?) {
            return Err(format!(
                "the copy of {bytes} bytes differs from the original"
            ));
        }
    }
    Ok(())
}

/// At most `most` values of a buffer, from the one at `at`.
fn values(
    client: &Client,
    element: Element,
    handle: &Handle,
    at: usize,
    most: usize,
) -> Result<Vec<f32>, String> {
    let size = element.size();
    let rest = handle.size_in_used() as usize - at * size;
    let part = handle
        .clone()
        .offset_start((at * size) as u64)
        .offset_end((rest - rest.min(most.saturating_mul(size))) as u64);
    let bytes = client
        .read_one(part)
        .map_err(|error| format!("a result cannot be read: {error:?}"))?;
    Ok(match element {
        Element::F16 => numbers(&bytes, f16::from_ne_bytes),
        Element::Bf16 => numbers(&bytes, bf16::from_ne_bytes),
        _ => numbers(&bytes, f32::from_ne_bytes),
    })
}

fn numbers<T: Into<f32>, const N: usize>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| from(*chunk).into()).collect()
}
