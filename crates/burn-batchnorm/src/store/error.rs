use burn::tensor::{DType, Shape};
use thiserror::Error;

/// Why weights were not loaded or saved. The model is as it was.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file cannot be read or written.
    #[error("cannot {action} the weights: {message}")]
    Store {
        /// What was tried: `read` or `write`.
        action: &'static str,
        /// What the store said.
        message: String,
    },
    /// The file does not go with the model.
    #[error("the weights do not go with the model, and none of them was loaded:\n{}", lines(.0))]
    Refused(
        /// Every tensor that was refused, ordered by key.
        Vec<Refusal>,
    ),
}

/// One tensor of a file that was refused.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{key}: {reason}")]
pub struct Refusal {
    /// The key in the file, as its framework writes it.
    pub key: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with one tensor.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum Reason {
    /// The model has it, the file has not.
    #[error("missing in the file; the model expects shape {expected:?}")]
    Missing {
        /// Shape of the parameter.
        expected: Shape,
    },
    /// The file has it, the model has not.
    #[error("unknown to the model; remove it from the file, or give the model that layer")]
    Extra,
    /// The shapes differ, in the memory layout that Burn has.
    #[error("expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Shape of the parameter.
        expected: Shape,
        /// Shape in the file, its axes in Burn's order.
        got: Shape,
    },
    /// Another kind of type, or one that the model's device cannot hold.
    #[error("expected a type like {expected:?} that the device supports, got {got:?}")]
    DType {
        /// Type of the parameter.
        expected: DType,
        /// Type in the file.
        got: DType,
    },
    /// A NaN or an infinity.
    #[error("{count} of {of} values are not finite: the training that wrote the file diverged")]
    NonFinite {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
    },
    /// A variance or a count below 0.
    #[error("expected values from 0, got {smallest}")]
    Negative {
        /// The smallest value.
        smallest: f64,
    },
    /// The values cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(
        /// What the store said.
        String,
    ),
}

fn lines(refusals: &[Refusal]) -> String {
    let lines: Vec<String> = refusals
        .iter()
        .map(|refusal| format!("  {refusal}"))
        .collect();
    lines.join("\n")
}
