//! Where a kernel writes, and whether that is where it reads.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::{Element, Error, Layout};

/// Memory for a result. Every element of it is written by a call that succeeds, none by one that fails.
///
/// Made from `&mut [E]`, or from `&mut [MaybeUninit<E>]` such as the spare capacity of a vector: fresh memory need not be zeroed.
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

/// A tensor that is read, and where the result of the same size goes: to other memory, or over the tensor itself.
///
/// ```
/// use batchnorm_cpu::Stream;
/// let (x, mut y) = ([1.0f32, 2.0], [0.0f32; 2]);
/// let _apart = Stream::new(&x, &mut y[..]);
/// let mut buffer = [1.0f32, 2.0];
/// let _over = Stream::in_place(&mut buffer);
/// ```
pub struct Stream<'a, E> {
    input: *const E,
    input_len: usize,
    output: Output<'a, E>,
}

impl<'a, E: Element> Stream<'a, E> {
    /// Reads `input`, writes `output`.
    pub fn new(input: &'a [E], output: impl Into<Output<'a, E>>) -> Self {
        Self {
            input: input.as_ptr(),
            input_len: input.len(),
            output: output.into(),
        }
    }

    /// Reads `data` and overwrites it.
    pub fn in_place(data: &'a mut [E]) -> Self {
        let output = Output::from(data);
        Self {
            input: output.start,
            input_len: output.len,
            output,
        }
    }

    /// Refuses sides that are not as long as the layout says.
    pub(crate) fn check(
        &self,
        layout: &Layout,
        input: &'static str,
        output: &'static str,
    ) -> Result<(), Error> {
        layout.expect_elements(input, self.input_len)?;
        layout.expect_elements(output, self.output.len)
    }

    /// Where to read and where to write `elements` elements, the caller's for as long as they were borrowed for.
    pub(crate) fn into_parts(self, elements: usize) -> (*const E, *mut E) {
        assert_eq!(self.input_len, elements);
        (self.input, self.output.into_start(elements))
    }
}

/// What follows the normalization, in one sweep with it: `act(normalized + residual)`.
///
/// ```
/// use batchnorm_cpu::{Activation, Epilogue};
/// let skip = [0.5f32; 8];
/// let plain = Epilogue::<f32>::default();
/// let block = Epilogue { residual: Some(&skip), activation: Activation::Relu };
/// # let _ = (plain, block);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a, E> {
    /// Added before the activation; `[outer, channels, inner]`.
    pub residual: Option<&'a [E]>,
    /// Applied last.
    pub activation: crate::Activation,
}

impl<E> Default for Epilogue<'_, E> {
    fn default() -> Self {
        Self {
            residual: None,
            activation: crate::Activation::None,
        }
    }
}

impl<E: Element> Epilogue<'_, E> {
    /// No residual, and this activation.
    pub fn activation(activation: crate::Activation) -> Self {
        Self {
            residual: None,
            activation,
        }
    }

    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Error> {
        self.activation.validate()?;
        self.residual
            .map_or(Ok(()), |r| layout.expect_elements("residual", r.len()))
    }
}
