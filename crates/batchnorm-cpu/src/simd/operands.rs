//! The tensors that passes work on, and the regions of whole tensors.

use super::region::{Operands, ReadOnly, Reads, Region};
use super::tail::Tail;
use crate::stream::{Output, Stream};
use crate::{Element, Layout};

/// The input alone.
pub(crate) struct Read<E> {
    pub(super) x: *const E,
}

/// The input and the gradient.
pub(crate) struct ReadPair<E, T> {
    pub(super) x: *const E,
    pub(super) dy: *const E,
    pub(super) tail: T,
}

/// The input and the output.
pub(crate) struct ReadWrite<E, T> {
    pub(super) x: *const E,
    pub(super) y: *mut E,
    pub(super) tail: T,
    /// Whether `y` is better written past the caches.
    pub(super) past_caches: bool,
}

/// The input, the gradient, and the gradients of the input and of the residual (null if nobody wants that).
pub(crate) struct ReadPairWrite<E, T> {
    pub(super) x: *const E,
    pub(super) dy: *const E,
    pub(super) dx: *mut E,
    pub(super) dresidual: *mut E,
    pub(super) tail: T,
    /// Whether `dx` is better written past the caches.
    pub(super) past_caches: bool,
}

/// From this size on an output leaves little of itself in the caches: three quarters of the last level of current server cores (32 MiB), as
/// glibc's memcpy has it. Smaller outputs are written faster past the caches too, but what reads them next pays for it: writing and reading
/// again together take 1.1 times as long at 16 MiB and 0.84 times at 32 MiB, measured where the last level has 300 MiB.
const PAST_CACHES_BYTES: usize = 24 << 20;

/// Whether the output of a pass is better written past the caches. A store through them reads the line from memory first, which is for nothing
/// where all of it is overwritten: a third of a forward pass's traffic (measured: 1.6 times as fast at `[32, 64, 56, 56]`). Not so where the
/// line is there already, because the input is the same memory.
fn past_caches<E: Element>(input: *const E, output: *const E, layout: &Layout) -> bool {
    let bytes = layout.elements() * size_of::<E>();
    E::PAST_CACHES && input != output && bytes >= PAST_CACHES_BYTES
}

macro_rules! impl_operands {
    ($name: ident<E $(, $tail: ident)?>, $($ptr: ident),* $(; $flag: ident)?) => {
        impl<E $(, $tail: Copy)?> Clone for $name<E $(, $tail)?> {
            #[inline(always)]
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<E $(, $tail: Copy)?> Copy for $name<E $(, $tail)?> {}
        impl<E: Element $(, $tail: Tail<E>)?> Operands for $name<E $(, $tail)?> {
            #[inline(always)]
            fn offset(self, n: usize) -> Self {
                Self { $($ptr: self.$ptr.wrapping_add(n),)* $(tail: <$tail as Operands>::offset(self.tail, n),)? $($flag: self.$flag)? }
            }
        }
    };
}

impl_operands!(Read<E>, x);
impl_operands!(ReadPair<E, T>, x, dy);
impl_operands!(ReadWrite<E, T>, x, y; past_caches);
impl<E: Element> ReadOnly for Read<E> {}
impl<E: Element, T: Tail<E>> ReadOnly for ReadPair<E, T> {}

impl<E, T: Copy> Clone for ReadPairWrite<E, T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<E, T: Copy> Copy for ReadPairWrite<E, T> {}
impl<E: Element, T: Tail<E>> Operands for ReadPairWrite<E, T> {
    #[inline(always)]
    fn offset(self, n: usize) -> Self {
        let dresidual = if self.dresidual.is_null() {
            self.dresidual
        } else {
            self.dresidual.wrapping_add(n)
        };
        let [x, dy] = [self.x, self.dy].map(|p| p.wrapping_add(n));
        Self {
            x,
            dy,
            dx: self.dx.wrapping_add(n),
            dresidual,
            tail: self.tail.offset(n),
            ..self
        }
    }
}

// SAFETY: the pointer is one of those that it is made from.
unsafe impl<E: Element, T: Tail<E>> Reads<Read<E>> for ReadWrite<E, T> {
    fn reading(self) -> Read<E> {
        Read { x: self.x }
    }
}

// SAFETY: the pointers are some of those that it is made from.
unsafe impl<E: Element, T: Tail<E>> Reads<ReadPair<E, T>> for ReadPairWrite<E, T> {
    fn reading(self) -> ReadPair<E, T> {
        let Self { x, dy, tail, .. } = self;
        ReadPair { x, dy, tail }
    }
}

/// The regions of whole tensors. All of them panic if a slice does not have `layout.elements()` elements; the callers have refused that before.
impl<'a, E: Element> Region<'a, Read<E>> {
    pub(crate) fn read(layout: &Layout, x: &'a [E]) -> Self {
        assert_eq!(x.len(), layout.elements());
        // SAFETY: `x` is borrowed for `'a` and has as many elements as the layout.
        unsafe { Region::new(Read { x: x.as_ptr() }, layout) }
    }
}

impl<'a, E: Element, T: Tail<E> + 'a> Region<'a, ReadPair<E, T>> {
    pub(crate) fn read_pair(layout: &Layout, x: &'a [E], dy: &'a [E], tail: T) -> Self {
        assert!(
            x.len() == layout.elements()
                && dy.len() == layout.elements()
                && tail.covers(layout.elements())
        );
        // SAFETY: all slices are borrowed for `'a` and have as many elements as the layout.
        unsafe {
            Region::new(
                ReadPair {
                    x: x.as_ptr(),
                    dy: dy.as_ptr(),
                    tail,
                },
                layout,
            )
        }
    }
}

impl<'a, E: Element, T: Tail<E> + 'a> Region<'a, ReadWrite<E, T>> {
    pub(crate) fn read_write(layout: &Layout, stream: Stream<'a, E>, tail: T) -> Self {
        let (x, y) = stream.into_parts(layout.elements());
        assert!(tail.covers(layout.elements()));
        let past_caches = past_caches(x, y, layout);
        // SAFETY: `into_parts` returns pointers to as many elements as the layout has, borrowed for `'a`: the second exclusively, except that the
        // first may be the same. The tail is borrowed too.
        unsafe {
            Region::new(
                ReadWrite {
                    x,
                    y,
                    tail,
                    past_caches,
                },
                layout,
            )
        }
    }
}

impl<'a, E: Element, T: Tail<E> + 'a> Region<'a, ReadPairWrite<E, T>> {
    pub(crate) fn read_pair_write(
        layout: &Layout,
        x: &'a [E],
        stream: Stream<'a, E>,
        tail: T,
        dresidual: Option<Output<'a, E>>,
    ) -> Self {
        let (dy, dx) = stream.into_parts(layout.elements());
        assert!(x.len() == layout.elements() && tail.covers(layout.elements()));
        let dresidual = dresidual.map_or(std::ptr::null_mut(), |out| {
            out.into_start(layout.elements())
        });
        // SAFETY: as for `read_write`; `dresidual` is null, or borrowed exclusively and as long.
        unsafe {
            Region::new(
                ReadPairWrite {
                    x: x.as_ptr(),
                    dy,
                    dx,
                    dresidual,
                    tail,
                    past_caches: past_caches(dy, dx, layout),
                },
                layout,
            )
        }
    }
}
