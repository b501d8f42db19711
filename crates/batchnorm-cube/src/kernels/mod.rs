//! The kernels. `walk.rs` tells which unit reads what, `merge.rs` how units' results become one; the others are the operations.

pub(crate) mod access;
pub(crate) mod backward;
pub(crate) mod element;
pub(crate) mod forward;
pub(crate) mod merge;
pub(crate) mod moments;
pub(crate) mod sums;
pub(crate) mod walk;
