//! Everything that touches memory through pointers, and the choice of the instruction set.
//!
//! | file | what |
//! |---|---|
//! | `kernels.rs` | the kernels: safe functions from registers to registers |
//! | `rows.rs`, `columns.rs` | the two loops that drive any kernel: along one channel, and across channels |
//! | `tile.rs` | [`Tile`](tile::Tile): pointers together with the rectangle that they are valid for |
//! | `lanes.rs`, `half.rs` | one register: loading, storing, converting |
//! | `curves.rs`, `exponential.rs` | the activations that are not piecewise linear, and exp |
//! | `moments.rs` | mean and variance: the algorithm, and its prose |
//! | `weighted.rs`, `weights.rs` | kernels for weighted positions, and where their weights lie |
//! | `tasks.rs` | what a thread does in one go: a partial reduction, or a kernel that writes, over some channels |
//!
//! A task is generic over macerator's [`Simd`]. [`Isa::run`] has it compiled once per instruction set and picks one at run time. A task is many rows or
//! many channels, so that the choice costs nothing. Every function below a task that has to do with registers is `#[inline(always)]`: only what
//! is inlined into the dispatched function is compiled for its instruction set.

// Registers are taken from arrays by index: an iterator's closure is not sure to be inlined, and is then compiled for another instruction set.
#![allow(clippy::needless_range_loop)]

use std::cell::Cell;

use macerator::{Arch, Simd, WithSimd};

pub(crate) mod columns;
mod curves;
mod exponential;
pub(crate) mod half;
pub(crate) mod kernels;
mod lanes;
pub(crate) mod moments;
pub(crate) mod rows;
pub(crate) mod tasks;
pub(crate) mod tile;
pub(crate) mod weighted;
mod weights;

/// The most lanes of `f32` that any register has.
pub(crate) const MAX_LANES: usize = 16;

/// An instruction set that this machine has.
///
/// The kernels use the best one. [`Isa::force`] chooses another for one call, which is how tests reach all of them.
#[derive(Debug, Clone, Copy)]
pub struct Isa(Arch);

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

impl Isa {
    /// The instruction sets of this machine, from plain scalar code to the best.
    pub fn available() -> Vec<Isa> {
        let best = Self::best().0;
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        let nested = {
            #[cfg(target_arch = "x86_64")]
            let all = [Arch::Scalar, Arch::V3, Arch::V4];
            #[cfg(target_arch = "x86")]
            let all = [Arch::Scalar, Arch::V3];
            // The x86-64 levels contain each other in this order, and a level's number grows with it.
            all.into_iter()
                .filter(|&arch| arch as u8 <= best as u8)
                .map(Isa)
                .collect()
        };
        #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
        let nested = match best {
            Arch::Scalar => vec![Isa(Arch::Scalar)],
            best => vec![Isa(Arch::Scalar), Isa(best)],
        };
        nested
    }

    /// Calls `f`; the kernels that it calls on this thread use this instruction set, on all the threads that they fan out to.
    ///
    /// For tests. While the thread waits for its helpers, rayon may give it an unrelated job, whose kernels then use this instruction set too.
    pub fn force<R>(self, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<Isa>);
        impl Drop for Restore {
            fn drop(&mut self) {
                FORCED.set(self.0);
            }
        }
        let _restore = Restore(FORCED.replace(Some(self)));
        f()
    }

    /// The instruction set for a call that starts now on this thread.
    pub(crate) fn current() -> Self {
        FORCED.get().unwrap_or_else(Self::best)
    }

    /// Runs a task compiled for this instruction set.
    pub(crate) fn run<T: WithSimd>(self, task: T) -> T::Output {
        // SAFETY: an `Isa` is only made from `Arch::detect` and from the levels below it (`available`), so the processor has its features.
        unsafe { self.0.dispatch(Chosen(task)) }
    }

    /// The best that this processor has. Those without AVX2, of before 2013, run plain code: for SSE4 alone everything would be compiled once more.
    fn best() -> Self {
        match Arch::detect() {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Arch::V2 => Self(Arch::Scalar),
            arch => Self(arch),
        }
    }
}

/// A task for the instruction sets that are ever chosen: for the other one there is nothing to compile.
struct Chosen<T>(T);

impl<T: WithSimd> WithSimd for Chosen<T> {
    type Output = T::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> T::Output {
        const SSE4_LANES: usize = 4;
        if cfg!(any(target_arch = "x86", target_arch = "x86_64")) && S::lanes32() == SSE4_LANES {
            unreachable!("`Isa` has no such level");
        }
        self.0.with_simd::<S>()
    }
}

/// Ordinary loops over values per channel, compiled for the instruction set so that the compiler can vectorize them.
pub(crate) struct Plain<F>(pub F);

impl<F: FnOnce()> WithSimd for Plain<F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self) -> usize {
            S::lanes32()
        }
    }

    #[test]
    fn forcing_reaches_every_level_and_ends_with_the_call() {
        let best = Isa::current().run(Width);
        let widths: Vec<usize> = Isa::available()
            .into_iter()
            .map(|isa| isa.force(|| Isa::current().run(Width)))
            .collect();
        assert!(
            widths.is_sorted() && widths.iter().all(|&w| w <= MAX_LANES),
            "{widths:?}"
        );
        assert_eq!((widths[0], widths.last().copied()), (2, Some(best)));
        assert_eq!(Isa::current().run(Width), best);
    }
}
