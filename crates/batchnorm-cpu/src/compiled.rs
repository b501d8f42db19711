//! The kernels of an element type, compiled in this crate.
//!
//! The public functions are generic over the element type, but only check their arguments. What they call then are function pointers in one static
//! table per type, so the kernels are instantiated here and never in a user's crate.

use crate::{Element, backward, forward, normalize, weighted};

/// The kernels of one element type.
pub struct Compiled<E: Element> {
    pub(crate) train: fn(forward::Train<'_, E>),
    pub(crate) normalize: fn(normalize::Normalized<'_, E>),
    pub(crate) moments: fn(forward::MomentsOf<'_, E>),
    pub(crate) backward: fn(backward::Backward<'_, E>),
    pub(crate) train_weighted: fn(weighted::Train<'_, E>),
}

impl<E: Element> Compiled<E> {
    pub(crate) const fn new() -> Self {
        Self {
            train: |call| call.run(),
            normalize: |call| call.run(),
            moments: |call| call.run(),
            backward: |call| call.run(),
            train_weighted: |call| call.run(),
        }
    }
}
