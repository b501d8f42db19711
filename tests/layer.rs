//! Tests of the layer. One binary, since each links all of Burn; one module an aspect.

mod common;
mod drop_in;
mod epilogue;
mod goldens;
mod memory;
mod options;
mod parity;
mod refusals;
mod runner;
mod state;
