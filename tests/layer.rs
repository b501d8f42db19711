//! Tests of the layer. One binary, since each links all of Burn; one module an aspect.

mod burn_nn;
mod common;
mod control;
mod drop_in;
mod epilogue;
mod every_option;
mod folding;
mod forms;
mod functional;
mod goldens;
mod in_place;
mod masks;
mod memory;
mod never_panics;
mod options;
mod parity;
mod reference;
mod refusals;
mod runner;
mod small_batches;
mod state;
mod training;
mod weights;
mod workers;
