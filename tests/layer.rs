//! Tests of the layer. One binary, since each links all of Burn; one module an aspect.

mod burn_nn;
mod common;
mod drop_in;
mod epilogue;
mod folding;
mod functional;
mod goldens;
mod memory;
mod never_panics;
mod options;
mod parity;
mod refusals;
mod runner;
mod state;
mod training;
mod weights;
mod workers;
