//! Everything that touches memory through pointers, and the choice of the instruction set.
//!
//! | file | what |
//! |---|---|
//! | `region.rs` | [`Region`]: pointers together with the rectangle that they are valid for; splitting it for threads |
//! | `operands.rs` | the pointers that passes work on, and the regions of whole tensors |
//! | `passes.rs` | the passes over memory: what happens to one register of each operand |
//! | `tail.rs` | activation and residual, which follow the normalization |
//! | `leaf.rs` | the two loops that drive any pass: along a row of one channel, and across channels |
//! | `columns.rs` | matrices whose columns belong to different channels |
//! | `map.rs`, `reduce.rs` | a whole task: a pass that writes, or a statistic, of a rectangle of channels |
//! | `lanes.rs` | loading and storing the element types |
//!
//! A kernel is an [`Op`]: a struct whose `run` is generic over macerator's [`Simd`]. [`Isa::run`] compiles it once per instruction set and picks
//! one at run time. An op is a whole task (many rows, many channels), so that this choice costs nothing. Every function below an op is
//! `#[inline(always)]`: only what is inlined into the dispatched function is compiled for its instruction set.

use std::cell::Cell;

use macerator::{
    Arch, ReduceAdd, Scalar, Simd, VAdd, VMul, VMulAdd, VOrd, VSelect, VSub, WithSimd,
};

pub(crate) mod columns;
mod lanes;
mod leaf;
pub(crate) mod map;
pub(crate) mod operands;
pub(crate) mod passes;
pub(crate) mod reduce;
pub(crate) mod region;
pub(crate) mod tail;

/// The most lanes of `f32` that any register has.
pub(crate) const MAX_LANES: usize = 16;

/// What the kernels need from a lane: `f32` and `f64`.
pub trait Lane: Scalar + VAdd + VSub + VMul + VMulAdd + VOrd + VSelect + ReduceAdd {
    /// The positions of the lanes, to make masks from.
    const POSITIONS: [Self; MAX_LANES];
    /// The finite value next to negative infinity.
    const LOWEST: Self;
}

/// A kernel, compiled once per instruction set.
pub(crate) trait Op {
    type Output;
    fn run<S: Simd>(self) -> Self::Output;
}

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
        let best = Arch::detect();
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        let nested = {
            #[cfg(target_arch = "x86_64")]
            let all = [Arch::Scalar, Arch::V2, Arch::V3, Arch::V4];
            #[cfg(target_arch = "x86")]
            let all = [Arch::Scalar, Arch::V2, Arch::V3];
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
        FORCED.get().unwrap_or_else(|| Isa(Arch::detect()))
    }

    /// Runs a kernel compiled for this instruction set.
    pub(crate) fn run<O: Op>(self, op: O) -> O::Output {
        struct Dispatched<O>(O);
        impl<O: Op> WithSimd for Dispatched<O> {
            type Output = O::Output;
            #[inline(always)]
            fn with_simd<S: Simd>(self) -> O::Output {
                self.0.run::<S>()
            }
        }
        // SAFETY: an `Isa` is only made from `Arch::detect` and from the levels below it (`available`), so the processor has its features.
        unsafe { self.0.dispatch(Dispatched(op)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Width;
    impl Op for Width {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd>(self) -> usize {
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
