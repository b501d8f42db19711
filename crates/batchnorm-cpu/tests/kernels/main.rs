//! The kernels against the naive reference, on every instruction set that this machine has.

mod common;

mod errors;
mod numerics;
mod places;
mod shapes;
mod threads;
mod weighted;
