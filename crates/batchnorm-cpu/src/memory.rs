//! Where a kernel writes, and whether that is where it reads.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::{Element, Error, Layout};

/// Memory for a result. Every element of it is written by a call that succeeds, none by one that fails.
///
/// Made from `&mut [E]`, or from `&mut [MaybeUninit<E>]` such as [`reserve`] gives: fresh memory need not be zeroed.
pub struct Output<'a, E> {
    start: *mut E,
    len: usize,
    _memory: PhantomData<&'a mut [E]>,
}

impl<'a, E: Element> From<&'a mut [E]> for Output<'a, E> {
    fn from(memory: &'a mut [E]) -> Self {
        Self {
            start: memory.as_mut_ptr(),
            len: memory.len(),
            _memory: PhantomData,
        }
    }
}

impl<'a, E: Element> From<&'a mut [MaybeUninit<E>]> for Output<'a, E> {
    fn from(memory: &'a mut [MaybeUninit<E>]) -> Self {
        Self {
            start: memory.as_mut_ptr().cast(),
            len: memory.len(),
            _memory: PhantomData,
        }
    }
}

impl<'a, E: Element> From<&'a mut Vec<E>> for Output<'a, E> {
    fn from(memory: &'a mut Vec<E>) -> Self {
        memory.as_mut_slice().into()
    }
}

impl<E> Output<'_, E> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The memory, which has `elements` elements and is the caller's for as long as it was borrowed for.
    pub(crate) fn into_start(self, elements: usize) -> *mut E {
        assert_eq!(self.len, elements);
        self.start
    }
}

/// A tensor that is read, and where a result of the same size goes: to other memory, or over the tensor itself.
///
/// ```
/// use batchnorm_cpu::InOut;
/// let (x, mut y) = ([1.0f32, 2.0], [0.0f32; 2]);
/// let _apart = InOut::new(&x, &mut y[..]);
/// let mut buffer = [1.0f32, 2.0];
/// let _over = InOut::in_place(&mut buffer);
/// ```
pub struct InOut<'a, E> {
    input: *const E,
    input_len: usize,
    output: Option<Output<'a, E>>,
    _input: PhantomData<&'a [E]>,
}

impl<'a, E: Element> InOut<'a, E> {
    /// Reads `input`, writes `output`.
    pub fn new(input: &'a [E], output: impl Into<Output<'a, E>>) -> Self {
        Self {
            output: Some(output.into()),
            ..Self::only(input)
        }
    }

    /// Reads `data` and overwrites it.
    pub fn in_place(data: &'a mut [E]) -> Self {
        let output = Output::from(data);
        Self {
            input: output.start,
            input_len: output.len,
            output: Some(output),
            _input: PhantomData,
        }
    }

    /// Reads `input` for other results: the gradient of y, where that of x is not wanted ([`backward`](crate::backward)).
    pub fn only(input: &'a [E]) -> Self {
        Self {
            input: input.as_ptr(),
            input_len: input.len(),
            output: None,
            _input: PhantomData,
        }
    }

    pub(crate) fn has_output(&self) -> bool {
        self.output.is_some()
    }

    /// Refuses sides that are not as long as the layout says.
    pub(crate) fn check(
        &self,
        layout: &Layout,
        input: &'static str,
        output: &'static str,
    ) -> Result<(), Error> {
        layout.expect_elements(input, self.input_len)?;
        match &self.output {
            Some(out) => layout.expect_elements(output, out.len),
            None => Ok(()),
        }
    }

    /// The same input, borrowed, and another output.
    pub(crate) fn input_to<'b>(&'b self, output: Output<'b, E>) -> InOut<'b, E> {
        InOut {
            input: self.input,
            input_len: self.input_len,
            output: Some(output),
            _input: PhantomData,
        }
    }

    /// Where to read `elements` elements, the caller's for as long as they were borrowed for, and where to write as many.
    pub(crate) fn into_parts(self, elements: usize) -> (*const E, Option<Output<'a, E>>) {
        assert_eq!(self.input_len, elements);
        (self.input, self.output)
    }
}

/// Makes room for `len` values at the start of an empty `memory`, not zeroed, to be written by a kernel. After the call succeeded,
/// `memory.set_len(len)` is sound.
///
/// The system hands out memory page by page, at the first write to each: at 4 KiB a page this costs several times what normalizing the page does.
/// Linux can back memory with pages of 2 MiB instead, if asked, and then does so once in 512 times as much. Allocators do not ask; this does.
///
/// ```
/// use batchnorm_cpu::*;
/// let (x, layout) = ([1.0f32, 3.0], Layout::new(2, 1, 1)?);
/// let mut y = Vec::new();
/// affine(layout, InOut::new(&x, reserve(&mut y, 2)), &[2.0], &[10.0], &[0.5])?;
/// // SAFETY: the call has written both.
/// unsafe { y.set_len(2) };
/// assert_eq!(y, [-9.5, 10.5]);
/// # Ok::<(), Error>(())
/// ```
///
/// # Panics
///
/// If `memory` is not empty.
pub fn reserve<E>(memory: &mut Vec<E>, len: usize) -> &mut [MaybeUninit<E>] {
    assert!(
        memory.is_empty(),
        "room is made at the start of an empty vector"
    );
    memory.reserve_exact(len);
    let room = &mut memory.spare_capacity_mut()[..len];
    prefer_huge_pages(room);
    room
}

#[cfg(target_os = "linux")]
fn prefer_huge_pages<E>(memory: &mut [MaybeUninit<E>]) {
    const HUGE_PAGE: usize = 2 << 20;
    let range = memory.as_mut_ptr_range();
    let start = range.start.addr().next_multiple_of(HUGE_PAGE);
    let end = range.end.addr() / HUGE_PAGE * HUGE_PAGE;
    if end > start {
        // SAFETY: start to end are whole pages within `memory`, which is borrowed for writing alone. The advice changes what backs them and never
        // what they hold; a system that does not know it refuses without effect.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages<E>(_memory: &mut [MaybeUninit<E>]) {}
