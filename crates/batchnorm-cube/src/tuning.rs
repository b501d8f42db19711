//! The numbers that decide how work is cut for a GPU.
//!
//! They are guesses from how GPUs are built: no GPU has been measured. `benches/gpu` measures them, one after the other, and prints the
//! best beside the chosen one. For that program alone there is the feature `tuning`, with which [`Tuning::set`] changes them while a process
//! runs; without it they are constants. Every choice gives right results.

/// How work is cut for a GPU. Each field says of what more or less is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Units of a cube, at most; a power of two.
    pub units: usize,
    /// Cubes for each multiprocessor that a reduction is split into.
    pub cubes: usize,
    /// How many times as many cubes an element-wise kernel has: short ones balance the load.
    pub element_wise: usize,
    /// Splits that every unit of the kernel that follows merges for itself; of more a launch of its own takes care. On every device.
    pub few_splits: usize,
    /// Vectors per unit below which a cube is made smaller or a channel not split further.
    pub work: usize,
    /// Vectors of a tensor that a unit loads before it computes with them, to hide the latency of memory.
    pub at_once: usize,
    /// Values in a row that a cube reads at least, of several channels where one has less.
    pub span: usize,
    /// Bytes of a tensor up to which it is not split: what is moved in the time of a launch.
    pub small: u64,
}

impl Tuning {
    /// What the crate does. A span of 32 `f32` is 128 bytes, four sectors of a cache.
    pub const CHOSEN: Self = Self {
        units: 256,
        cubes: 4,
        element_wise: 4,
        few_splits: 16,
        work: 4,
        at_once: 4,
        span: 32,
        small: 1 << 20,
    };
}

#[cfg(not(feature = "tuning"))]
impl Tuning {
    /// The numbers in use.
    pub(crate) fn current() -> Self {
        Self::CHOSEN
    }
}

#[cfg(feature = "tuning")]
mod changed {
    use std::sync::{Mutex, PoisonError};

    use super::Tuning;

    static CURRENT: Mutex<Tuning> = Mutex::new(Tuning::CHOSEN);

    impl Tuning {
        /// The numbers in use.
        pub(crate) fn current() -> Self {
            *CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Cuts every later operation of the process by these numbers.
        pub fn set(self) {
            *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = self;
        }
    }
}
