//! What is timed: every shape, order of memory, type and epilogue that the device can do.

use std::collections::HashMap;
use std::time::Instant;

use batchnorm_cube::*;
use cubecl::prelude::*;

use crate::check::check;
use crate::clock::{copy_seconds, time};
use crate::memory::Memory;
use crate::table::{EPILOGUES, Measured, Row, header};
use crate::training::{SHAPES, Training};

/// Shapes of large batches, besides the suite's.
const LARGE: [(&str, &[usize]); 2] = [
    ("n256_c1024_hw14x14", &[256, 1024, 14, 14]),
    ("n256_c64_hw56x56", &[256, 64, 56, 56]),
];

/// What is chosen of all rows.
pub struct Choice {
    /// Part of the shapes' names.
    pub only: String,
    /// Three small shapes.
    pub quick: bool,
    /// Positions with weights that channels share, every third of which is 0. Results are left to the tests.
    pub weights: bool,
    /// Seconds for a pass of a row.
    pub budget: f64,
    /// No row begins later.
    pub until: Instant,
}

/// A row to be measured.
struct Plan {
    name: &'static str,
    shape: &'static [usize],
    problem: Problem,
    channels_last: bool,
    epilogue: usize,
    weights: bool,
}

/// All rows of the choice, the plain ones first.
fn plans(client: &Client, choice: &Choice) -> Vec<Plan> {
    let shapes = SHAPES.into_iter().chain(LARGE);
    let small = |shape: &[usize]| shape.iter().product::<usize>() < 1 << 21;
    let shapes: Vec<_> = shapes
        .filter(|(name, shape)| name.contains(&choice.only) && (!choice.quick || small(shape)))
        .take(match choice.quick {
            true => 3,
            false => usize::MAX,
        })
        .collect();
    let mut plans = Vec::new();
    let weights = choice.weights;
    for (epilogue, (_, _, residual)) in EPILOGUES.into_iter().enumerate() {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            for (name, shape) in &shapes {
                for channels_last in [false, true] {
                    let [batch, channels, inner @ ..] = shape else {
                        unreachable!("every shape has channels")
                    };
                    let inner: usize = inner.iter().product();
                    let layout = match channels_last {
                        true => Layout::new(batch * inner, *channels, 1),
                        false => Layout::new(*batch, *channels, inner),
                    };
                    let problem = Problem::new(layout, element);
                    let operations = [
                        Operation::Train { residual, weights },
                        Operation::TrainBackward { residual, weights },
                    ];
                    let can = |operation| supports(client.properties(), &problem, operation);
                    // Without other axes there is no second order.
                    if (channels_last && inner == 1)
                        || operations.into_iter().any(|o| can(o).is_err())
                    {
                        continue;
                    }
                    plans.push(Plan {
                        name,
                        shape,
                        problem,
                        channels_last,
                        epilogue,
                        weights,
                    });
                }
            }
        }
    }
    plans
}

/// All that was measured.
pub struct Table {
    /// Bytes per second of the large copy, read and written.
    pub copied: f64,
    /// The rows.
    pub rows: Vec<Row>,
    /// How many rows were left out for lack of time.
    pub left: usize,
    /// What was not done as it should be, and so not timed.
    pub failures: Vec<String>,
}

/// Measures and prints row by row.
///
/// # Errors
///
/// A sentence, where there is nothing to measure or the copy does not copy.
pub fn measure(client: &Client, choice: &Choice) -> Result<Table, String> {
    let plans = plans(client, choice);
    if plans.is_empty() {
        return Err(format!(
            "no shape that fits has `{}` in its name",
            choice.only
        ));
    }
    let software = client.properties().identity.physical.is_none();
    let mut memories = HashMap::new();
    let new = |element: &Element| {
        let same = plans.iter().filter(|plan| plan.problem.element == *element);
        let largest = same.map(Plan::bytes).max().unwrap_or(0);
        Memory::new(client, *element, largest, !software)
    };
    let first = plans[0].problem.element;
    let memory = memories.entry(first).or_insert_with_key(new);
    let bytes = memory.bytes();
    let pairs = memory.pairs(client, bytes);
    let copied = 2.0 * bytes as f64 / copy_seconds(client, choice.budget, &pairs, bytes)?.device;
    drop(pairs);
    println!("copy of {} MiB: {:.1} GB/s", bytes >> 20, copied * 1e-9);
    println!("{}", header());
    let mut copies = HashMap::new();
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for plan in &plans {
        if Instant::now() > choice.until {
            break;
        }
        let memory = &*memories.entry(plan.problem.element).or_insert_with_key(new);
        let copy = match copies.get(&plan.bytes()) {
            Some(copy) => *copy,
            None => {
                let pairs = memory.pairs(client, plan.bytes());
                copy_seconds(client, choice.budget / 2.0, &pairs, plan.bytes())?.device
            }
        };
        copies.insert(plan.bytes(), copy);
        match plan.measure(client, memory, choice.budget, copy, copied) {
            Ok(row) => {
                println!("{}", row.line());
                rows.push(row);
            }
            Err(error) => {
                let Plan { name, problem, .. } = plan;
                let failure = format!("{name}, {problem:?}: {error}");
                println!("not timed: {failure}");
                failures.push(failure);
            }
        }
    }
    let left = plans.len() - rows.len() - failures.len();
    if left > 0 {
        println!("{left} of {} rows left out: the time was up", plans.len());
    }
    Ok(Table {
        copied,
        rows,
        left,
        failures,
    })
}

impl Plan {
    /// Bytes of the tensor.
    fn bytes(&self) -> usize {
        self.problem.layout.len() * self.problem.element.size()
    }

    fn measure(
        &self,
        client: &Client,
        memory: &Memory,
        budget: f64,
        copy: f64,
        copied: f64,
    ) -> Result<Row, String> {
        let (_, activation, add) = EPILOGUES[self.epilogue];
        let tensors = memory.tensors(&self.problem);
        let weights: Vec<u8> = (0..self.problem.layout.samples_per_channel())
            .flat_map(|i| f32::to_ne_bytes((i % 3) as f32))
            .collect();
        let weights = client.create_from_slice(&weights);
        let weights = self.weights.then_some(Weights::Shared(&weights));
        let steps: Vec<Training<'_>> = tensors
            .iter()
            .map(|[x, dy, residual]| {
                Training::new(client, self.problem, x, dy)
                    .followed_by(activation, add.then_some(residual))
                    .with_weights(weights)
            })
            .collect();
        let checked = steps.iter().filter(|_| !self.weights);
        for (step, [x, _, residual]) in checked.zip(&tensors) {
            let residual = add.then_some(residual);
            check(client, &self.problem, step, x, activation, residual)?;
        }
        // x, y and what is added; and x, dy, dx, and what is added and its gradient.
        let add = u64::from(add);
        let floors = [2 + add, 2 + add + 3 + 2 * add, 2 + add];
        let tensor = self.bytes() as u64;
        let [forward, backward, inference] = steps[0].passes();
        let theory = [forward, forward + backward, inference];
        let passes = [0, 1, 2].map(|pass| {
            let step = |run: usize| &steps[run % steps.len()];
            let launches = |run| match pass {
                0 => vec![step(run).forward()],
                1 => vec![step(run).forward(), step(run).backward()],
                _ => vec![step(run).inference()],
            };
            let once = launches(0);
            let seconds = time(client, budget, |run| {
                launches(run);
            });
            Measured {
                seconds,
                launches: once.iter().map(Launches::count).sum(),
                ratio: once.iter().map(Launches::bytes).sum::<u64>() as f64 / theory[pass] as f64,
                share: (floors[pass] * tensor) as f64 / seconds.device / copied,
            }
        });
        Ok(Row {
            name: self.name,
            shape: self.shape.to_vec(),
            channels_last: self.channels_last,
            epilogue: self.epilogue,
            element: self.problem.element,
            copy,
            passes,
        })
    }
}
