//! Fused kernels, backend by backend: the tensor primitive to slices, and nothing else.

#[cfg(feature = "cube")]
mod buffers;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "host")]
mod host;
#[cfg(feature = "host")]
mod implement;
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "burn deprecates NdArray, this crate supports it")]
mod ndarray;

#[cfg(feature = "cube")]
pub(crate) use buffers::{has_wide_exponential, largest_tensor};
