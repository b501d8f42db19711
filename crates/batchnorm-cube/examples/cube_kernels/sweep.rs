//! The numbers of `tuning.rs`, one after the other, around what is chosen.

use std::time::Instant;

use batchnorm_cube::*;
use cubecl::prelude::*;
use serde_json::{Value, json};

use crate::check::check;
use crate::clock::time;
use crate::memory::Memory;
use crate::training::Training;

/// What they are tried on: split rows, whole rows, columns of many rows, columns of a dense layer.
const LAYOUTS: [(&str, usize, usize, usize); 4] = [
    ("n32_c64_hw56x56", 32, 64, 56 * 56),
    ("n32_c512_hw28x28", 32, 512, 28 * 28),
    ("n256_hw14x14_c1024", 256 * 14 * 14, 1024, 1),
    ("n4096_c1024", 4096, 1024, 1),
];

/// What they are tried on where there is little time.
const SMALL: [(&str, usize, usize, usize); 2] =
    [("n8_c32_hw16x16", 8, 32, 16 * 16), ("n512_c64", 512, 64, 1)];

/// A field, its values, and how it is set.
type Field = (&'static str, &'static [u64], fn(&mut Tuning, u64));

const FIELDS: [Field; 8] = [
    ("cubes", &[1, 2, 4, 8, 16], |t, v| t.cubes = v as usize),
    ("element_wise", &[1, 2, 4, 8, 16], |t, v| {
        t.element_wise = v as usize
    }),
    ("few_splits", &[1, 4, 16, 64, 256], |t, v| {
        t.few_splits = v as usize
    }),
    ("work", &[1, 2, 4, 8, 16], |t, v| t.work = v as usize),
    ("at_once", &[1, 2, 4, 8], |t, v| t.at_once = v as usize),
    ("span", &[8, 16, 32, 64, 128], |t, v| t.span = v as usize),
    (
        "small",
        &[1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24],
        |t, v| t.small = v,
    ),
    // The last, since a card may refuse cubes that are wide.
    ("units", &[64, 128, 256, 512], |t, v| t.units = v as usize),
];

/// Times forward and backward of every layout with every value, prints the values' times relative to the chosen one's, and returns them.
pub fn sweep(
    client: &Client,
    quick: bool,
    budget: f64,
    until: Instant,
) -> Result<Vec<Value>, String> {
    let layouts = match quick {
        true => &SMALL[..],
        false => &LAYOUTS[..],
    };
    let problems: Vec<Problem> = layouts
        .iter()
        .map(|(_, outer, channels, inner)| Problem {
            strategy: Strategy::Gpu,
            ..Problem::new(Layout::new(*outer, *channels, *inner), Element::F32)
        })
        .collect();
    let largest = problems
        .iter()
        .map(|problem| 4 * problem.layout.len())
        .max();
    let memory = Memory::new(client, Element::F32, largest.unwrap_or(0), !quick);
    let seconds = |problem: &Problem, tuning: Tuning| -> Result<f64, String> {
        tuning.set();
        let tensors = memory.tensors(problem);
        let steps: Vec<Training<'_>> = tensors
            .iter()
            .map(|[x, dy, _]| Training::new(client, *problem, x, dy))
            .collect();
        check(
            client,
            problem,
            &steps[0],
            &tensors[0][0],
            Activation::None,
            None,
        )?;
        let seconds = time(client, budget, |run| {
            let step = &steps[run % steps.len()];
            step.forward();
            step.backward();
        });
        Tuning::CHOSEN.set();
        Ok(seconds.device)
    };
    let all = |tuning: Tuning| -> Result<Vec<f64>, String> {
        let of = |problem| seconds(problem, tuning);
        problems.iter().map(of).collect()
    };

    println!(
        "forward + backward, f32, against the chosen numbers: geometric mean of {} shapes",
        layouts.len()
    );
    let mut results = Vec::new();
    for (name, values, set) in FIELDS {
        if Instant::now() > until {
            println!("{name} and what follows left out: the time was up");
            break;
        }
        let changed = |value| {
            let mut tuning = Tuning::CHOSEN;
            set(&mut tuning, value);
            tuning
        };
        let chosen = *values
            .iter()
            .find(|value| changed(**value) == Tuning::CHOSEN)
            .expect("the chosen value is among those that are tried");
        // Before and after, so that neither a clock that rises nor one that falls flatters the others.
        let before = all(Tuning::CHOSEN)?;
        let others: Vec<(u64, Vec<f64>)> = values
            .iter()
            .filter(|value| **value != chosen)
            .map(|value| Ok((*value, all(changed(*value))?)))
            .collect::<Result<_, String>>()?;
        let after = all(Tuning::CHOSEN)?;
        let base: Vec<f64> = before
            .iter()
            .zip(&after)
            .map(|(a, b)| (a + b) / 2.0)
            .collect();

        let mut tried: Vec<(u64, Vec<f64>)> = others
            .into_iter()
            .map(|(value, times)| (value, times.iter().zip(&base).map(|(t, b)| t / b).collect()))
            .collect();
        tried.push((chosen, vec![1.0; base.len()]));
        tried.sort_by_key(|(value, _)| *value);
        let mean = |ratios: &[f64]| {
            (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp()
        };
        let best = tried
            .iter()
            .min_by(|a, b| mean(&a.1).total_cmp(&mean(&b.1)))
            .expect("the chosen one at least");
        let shown: String = tried
            .iter()
            .map(|(value, ratios)| format!("  {value}: {:.3}", mean(ratios)))
            .collect();
        let repeated: Vec<f64> = before.iter().zip(&after).map(|(a, b)| b / a).collect();
        println!(
            "{name:<13} chosen {chosen} (again {:.3}), best {} ({:.3});{shown}",
            mean(&repeated),
            best.0,
            mean(&best.1)
        );
        results.push(json!({
            "name": name,
            "chosen": chosen,
            "best": best.0,
            "shapes": layouts.iter().map(|layout| layout.0).collect::<Vec<_>>(),
            "chosen_ms": base.iter().map(|s| s * 1e3).collect::<Vec<_>>(),
            "repeated": repeated,
            "relative": tried.iter().map(|(value, ratios)| json!({"value": value, "times": ratios})).collect::<Vec<_>>(),
        }));
    }
    Ok(results)
}
