//! What is timed: every shape, order of memory, type and epilogue that the device can do.

use std::collections::HashMap;
use std::time::Instant;

use batchnorm_cube::*;
use cubecl::prelude::*;
use serde_json::{Value, json};

use crate::clock::{Seconds, copy_seconds, time};
use crate::memory::Memory;
use crate::training::{SHAPES, Training};

/// Shapes of large batches, besides the suite's.
const LARGE: [(&str, &[usize]); 2] = [
    ("n256_c1024_hw14x14", &[256, 1024, 14, 14]),
    ("n256_c64_hw56x56", &[256, 64, 56, 56]),
];

/// What follows the normalization.
const EPILOGUES: [(&str, Activation, bool); 3] = [
    ("none", Activation::None, false),
    ("relu", Activation::Relu, false),
    ("add-relu", Activation::Relu, true),
];

/// The passes, in the order of a row.
const PASSES: [&str; 3] = ["forward", "forward_backward", "inference"];

/// One line of the table.
pub struct Row {
    name: &'static str,
    shape: Vec<usize>,
    channels_last: bool,
    epilogue: usize,
    element: Element,
    copy: f64,
    passes: [Measured; 3],
}

/// What was measured of a pass.
struct Measured {
    seconds: Seconds,
    launches: usize,
    /// Bytes of its launches, as a multiple of what passes without a split move.
    ratio: f64,
    /// Bytes of a pass that reads and writes every tensor once, per second, as a share of the large copy's.
    share: f64,
}

/// What is chosen of all rows.
pub struct Choice {
    /// Part of the shapes' names.
    pub only: String,
    /// Three small shapes.
    pub quick: bool,
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
                        Operation::Train { residual },
                        Operation::TrainBackward { residual },
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
                    });
                }
            }
        }
    }
    plans
}

/// Measures and prints row by row; the bytes per second of the large copy, the rows, and how many were left out for lack of time.
pub fn measure(client: &Client, choice: &Choice) -> Result<(f64, Vec<Row>, usize), String> {
    let plans = plans(client, choice);
    let largest = plans.iter().map(|plan| plan.problem.layout.len()).max();
    let Some(largest) = largest else {
        return Err(format!(
            "no shape that fits has `{}` in its name",
            choice.only
        ));
    };
    let software = client.properties().identity.physical.is_none();
    let mut memories = HashMap::new();
    let new = |element| Memory::new(client, element, largest, !software);
    let memory = memories
        .entry(Element::F32)
        .or_insert_with_key(|element| new(*element));
    let bytes = memory.bytes();
    let pairs = memory.pairs(client, bytes);
    let copied = 2.0 * bytes as f64 / copy_seconds(client, choice.budget, &pairs, bytes).device;
    drop(pairs);
    println!("copy of {} MiB: {:.1} GB/s", bytes >> 20, copied * 1e-9);
    let passes = ["fwd", "f+b", "inf"].map(|pass| {
        format!(
            " | {:>9} {:>9} {:>2} {:>6}",
            format!("{pass} ms"),
            "(loop)",
            "n",
            "%copy"
        )
    });
    println!(
        "{:<22}{:<6}{:<6}{:<9}{:>8}{}",
        "shape",
        "order",
        "type",
        "epilogue",
        "copy ms",
        passes.concat()
    );
    let mut copies = HashMap::new();
    let mut rows = Vec::new();
    for plan in &plans {
        if Instant::now() > choice.until {
            break;
        }
        let element = plan.problem.element;
        let memory = &*memories.entry(element).or_insert_with(|| new(element));
        let tensor = plan.problem.layout.len() * plan.problem.element.size();
        let copy = *copies.entry(tensor).or_insert_with(|| {
            let pairs = memory.pairs(client, tensor);
            copy_seconds(client, choice.budget / 2.0, &pairs, tensor).device
        });
        let row = plan.measure(client, memory, choice.budget, copy, copied);
        println!("{}", row.line());
        rows.push(row);
    }
    let left = plans.len() - rows.len();
    if left > 0 {
        println!("{left} of {} rows left out: the time was up", plans.len());
    }
    Ok((copied, rows, left))
}

impl Plan {
    fn measure(
        &self,
        client: &Client,
        memory: &Memory,
        budget: f64,
        copy: f64,
        copied: f64,
    ) -> Row {
        let (_, activation, add) = EPILOGUES[self.epilogue];
        let steps: Vec<Training<'_>> = memory
            .tensors(&self.problem)
            .iter()
            .map(|[x, dy, residual]| {
                Training::new(client, self.problem, x, dy)
                    .followed_by(activation, add.then_some(residual))
            })
            .collect();
        // x, y and what is added; and x, dy, dx, and what is added and its gradient.
        let add = u64::from(add);
        let floors = [2 + add, 2 + add + 3 + 2 * add, 2 + add];
        let tensor = (self.problem.layout.len() * self.problem.element.size()) as u64;
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
        Row {
            name: self.name,
            shape: self.shape.to_vec(),
            channels_last: self.channels_last,
            epilogue: self.epilogue,
            element: self.problem.element,
            copy,
            passes,
        }
    }
}

impl Row {
    fn order(&self) -> &'static str {
        match self.channels_last {
            true => "last",
            false => "first",
        }
    }

    fn kind(&self) -> String {
        format!("{:?}", self.element).to_lowercase()
    }

    fn line(&self) -> String {
        let passes: String = self
            .passes
            .iter()
            .map(|pass| {
                let Seconds { device, host } = pass.seconds;
                format!(
                    " | {:9.4} {:9.4} {:2} {:6.1}",
                    device * 1e3,
                    host * 1e3,
                    pass.launches,
                    pass.share * 100.0
                )
            })
            .collect();
        format!(
            "{:<22}{:<6}{:<6}{:<9}{:8.4}{passes}",
            self.name,
            self.order(),
            self.kind(),
            EPILOGUES[self.epilogue].0,
            self.copy * 1e3
        )
    }

    /// For the file of results.
    pub fn json(&self) -> Value {
        let passes: serde_json::Map<String, Value> = PASSES
            .iter()
            .zip(&self.passes)
            .map(|(name, pass)| {
                let value = json!({
                    "ms": pass.seconds.device * 1e3,
                    "loop_ms": pass.seconds.host * 1e3,
                    "launches": pass.launches,
                    "bytes_of_passes": pass.ratio,
                    "share_of_copy": pass.share,
                });
                (name.to_string(), value)
            })
            .collect();
        json!({
            "name": self.name,
            "shape": self.shape,
            "order": self.order(),
            "dtype": self.kind(),
            "epilogue": EPILOGUES[self.epilogue].0,
            "copy_ms": self.copy * 1e3,
            "passes": passes,
        })
    }
}

/// Geometric means of the shares of the copy, over all shapes of 8 MB and more.
pub fn summary(rows: &[Row]) -> String {
    let mut text = String::new();
    for (epilogue, (name, ..)) in EPILOGUES.iter().enumerate() {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            for channels_last in [false, true] {
                let rows: Vec<_> = rows
                    .iter()
                    .filter(|row| {
                        (row.epilogue, row.element, row.channels_last)
                            == (epilogue, element, channels_last)
                            && row.shape.iter().product::<usize>() * element.size() >= 8_000_000
                    })
                    .collect();
                let Some(first) = rows.first() else { continue };
                let means = [0, 1, 2].map(|pass| {
                    let logs: f64 = rows.iter().map(|row| row.passes[pass].share.ln()).sum();
                    format!("{:6.1}", (logs / rows.len() as f64).exp() * 100.0)
                });
                let (kind, order) = (first.kind(), first.order());
                text += &format!("{order:<6}{kind:<6}{name:<9}{}\n", means.concat());
            }
        }
    }
    match text.is_empty() {
        true => text,
        false => {
            "geometric means of % of copy, tensors of 8 MB and more: fwd, f+b, inf\n".to_string()
                + &text
        }
    }
}
