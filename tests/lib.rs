//! What the tests of burn-batchnorm share: the devices of the build, and cases as files.
//!
//! - [`devices`]: every device that this build and this machine have
//! - [`case`]: one batch normalization described by a safetensors file, and how to run it

pub mod case;
pub mod devices;
