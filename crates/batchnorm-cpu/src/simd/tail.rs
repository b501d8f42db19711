//! What follows the normalization: nothing, an activation, or a residual and an activation.
//!
//! Each is a type, so that the plain kernels neither load nor compute anything for it.

use std::marker::PhantomData;

use macerator::{Simd, Vector};

use super::Lane;
use super::passes::Reg;
use super::region::Operands;
use crate::Element;
use crate::activation::Pieces;

/// What follows the normalization.
pub(crate) trait Tail<E: Element>: Operands {
    /// A register of what it reads.
    type Loaded<S: Simd>: Copy;

    /// Whether what it reads has this many elements.
    fn covers(&self, elements: usize) -> bool;

    /// # Safety
    ///
    /// As for [`Pass::load`](super::passes::Pass::load).
    unsafe fn load<S: Simd, const FULL: bool>(self, at: usize, n: usize) -> Self::Loaded<S>;

    /// `y` from `z` without the residual.
    fn forward<S: Simd>(self, z: Reg<S, E>, loaded: Self::Loaded<S>) -> Reg<S, E>;

    /// `dy * act'(z)`; `z` is only computed where there is an activation.
    fn backward<S: Simd>(
        self,
        z: impl FnOnce() -> Reg<S, E>,
        loaded: Self::Loaded<S>,
        dy: Reg<S, E>,
    ) -> Reg<S, E>;
}

/// Nothing follows.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

/// An activation follows.
#[derive(Clone, Copy)]
pub(crate) struct Activated<A>(pub Pieces<A>);

/// A residual is added, then an activation follows.
#[derive(Clone, Copy)]
pub(crate) struct Residual<'a, E: Element> {
    residual: *const E,
    elements: usize,
    pieces: Pieces<E::Accum>,
    _memory: PhantomData<&'a [E]>,
}

impl<'a, E: Element> Residual<'a, E> {
    pub(crate) fn new(residual: &'a [E], pieces: Pieces<E::Accum>) -> Self {
        Self {
            residual: residual.as_ptr(),
            elements: residual.len(),
            pieces,
            _memory: PhantomData,
        }
    }
}

impl Operands for Plain {
    #[inline(always)]
    fn offset(self, _n: usize) -> Self {
        self
    }
}

impl<A: Copy> Operands for Activated<A> {
    #[inline(always)]
    fn offset(self, _n: usize) -> Self {
        self
    }
}

impl<E: Element> Operands for Residual<'_, E> {
    #[inline(always)]
    fn offset(self, n: usize) -> Self {
        Self {
            residual: self.residual.wrapping_add(n),
            ..self
        }
    }
}

impl<A: Lane> Pieces<A> {
    #[inline(always)]
    fn value<S: Simd>(self, z: Vector<S, A>) -> Vector<S, A> {
        // A slope of zero times negative infinity would be NaN.
        let bounded = z.max(A::LOWEST.splat());
        let outer = bounded.mul_add(self.slope.splat(), self.offset.splat());
        let y = z.lt(self.low.splat()).select(outer, z);
        let high = self.high.splat();
        z.gt(high).select(high, y)
    }

    #[inline(always)]
    fn masked<S: Simd>(self, z: Vector<S, A>, dy: Vector<S, A>) -> Vector<S, A> {
        let g = z.le(self.low.splat()).select(dy * self.slope.splat(), dy);
        z.ge(self.high.splat()).select(A::default().splat(), g)
    }
}

impl<E: Element> Tail<E> for Plain {
    type Loaded<S: Simd> = ();

    fn covers(&self, _elements: usize) -> bool {
        true
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const FULL: bool>(self, _at: usize, _n: usize) {}

    #[inline(always)]
    fn forward<S: Simd>(self, z: Reg<S, E>, _loaded: ()) -> Reg<S, E> {
        z
    }

    #[inline(always)]
    fn backward<S: Simd>(
        self,
        _z: impl FnOnce() -> Reg<S, E>,
        _loaded: (),
        dy: Reg<S, E>,
    ) -> Reg<S, E> {
        dy
    }
}

impl<E: Element> Tail<E> for Activated<E::Accum> {
    type Loaded<S: Simd> = ();

    fn covers(&self, _elements: usize) -> bool {
        true
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const FULL: bool>(self, _at: usize, _n: usize) {}

    #[inline(always)]
    fn forward<S: Simd>(self, z: Reg<S, E>, _loaded: ()) -> Reg<S, E> {
        self.0.value(z)
    }

    #[inline(always)]
    fn backward<S: Simd>(
        self,
        z: impl FnOnce() -> Reg<S, E>,
        _loaded: (),
        dy: Reg<S, E>,
    ) -> Reg<S, E> {
        self.0.masked(z(), dy)
    }
}

impl<E: Element> Tail<E> for Residual<'_, E> {
    type Loaded<S: Simd> = Reg<S, E>;

    fn covers(&self, elements: usize) -> bool {
        self.elements == elements
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const FULL: bool>(self, at: usize, n: usize) -> Reg<S, E> {
        // SAFETY: the caller vouches for `at`.
        unsafe { E::load::<S, FULL>(self.residual.add(at), n) }
    }

    #[inline(always)]
    fn forward<S: Simd>(self, z: Reg<S, E>, residual: Reg<S, E>) -> Reg<S, E> {
        self.pieces.value(z + residual)
    }

    #[inline(always)]
    fn backward<S: Simd>(
        self,
        z: impl FnOnce() -> Reg<S, E>,
        residual: Reg<S, E>,
        dy: Reg<S, E>,
    ) -> Reg<S, E> {
        self.pieces.masked(z() + residual, dy)
    }
}
