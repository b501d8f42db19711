//! The kernels. `walk.rs` says which unit reads what, `access.rs` how; `moments.rs`, `sums.rs` and `merge.rs` reduce, `element.rs` is what
//! happens to a single vector, `forward.rs` and `backward.rs` put them together; `weighted.rs` is what weights of positions change.

pub(crate) mod access;
pub(crate) mod backward;
pub(crate) mod curves;
pub(crate) mod element;
pub(crate) mod forward;
pub(crate) mod merge;
pub(crate) mod moments;
pub(crate) mod numbers;
pub(crate) mod sums;
pub(crate) mod walk;
pub(crate) mod weighted;
