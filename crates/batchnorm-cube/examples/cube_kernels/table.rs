//! Lines of the table, for people and for the file of results.

use batchnorm_cube::{Activation, Element};
use serde_json::{Value, json};

use crate::clock::Seconds;

/// What follows the normalization.
pub const EPILOGUES: [(&str, Activation, bool); 3] = [
    ("none", Activation::None, false),
    ("relu", Activation::Relu, false),
    ("add-relu", Activation::Relu, true),
];

/// The passes, in the order of a row.
const PASSES: [&str; 3] = ["forward", "forward_backward", "inference"];

/// One line of the table.
pub struct Row {
    /// Of the shape.
    pub name: &'static str,
    /// Lengths of the axes, channels on axis 1.
    pub shape: Vec<usize>,
    /// Whether channels lie on the last axis in memory.
    pub channels_last: bool,
    /// Which of the epilogues.
    pub epilogue: usize,
    /// The type.
    pub element: Element,
    /// Seconds of a copy of the tensor.
    pub copy: f64,
    /// Forward, forward and backward, inference.
    pub passes: [Measured; 3],
}

/// What was measured of a pass.
pub struct Measured {
    /// Seconds of a run.
    pub seconds: Seconds,
    /// Launches of a run.
    pub launches: usize,
    /// Bytes of its launches, as a multiple of what passes without a split move.
    pub ratio: f64,
    /// Bytes of a pass that reads and writes every tensor once, per second, as a share of the large copy's.
    pub share: f64,
}

/// Above the rows.
pub fn header() -> String {
    let passes = ["fwd", "f+b", "inf"].map(|pass| {
        format!(
            " | {:>9} {:>9} {:>2} {:>6}",
            format!("{pass} ms"),
            "(loop)",
            "n",
            "%copy"
        )
    });
    format!(
        "{:<22}{:<6}{:<6}{:<9}{:>8}{}",
        "shape",
        "order",
        "type",
        "epilogue",
        "copy ms",
        passes.concat()
    )
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

    /// For people.
    pub fn line(&self) -> String {
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
