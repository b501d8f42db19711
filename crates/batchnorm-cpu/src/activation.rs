//! What can be fused behind the normalization: a residual, and an activation.
//!
//! ReLU and its family are piecewise linear, of three pieces:
//!
//! ```text
//!   act(v) = slope * v + offset   where v < low
//!            v                    between
//!            high                 where v > high
//! ```
//!
//! The others are curves (`simd/curves.rs`). The derivative of all follows from `v` alone, and `v` follows from the input and the saved statistics:
//! the backward pass recomputes it, so that no output has to be kept. A new member is one line in [`Applied::new`], and for a curve its formulas.

use crate::{Accum, Element, Error, Layout};

/// What is applied to the normalized value (and the residual, if there is one).
///
/// At a kink the derivative is that of PyTorch: the outer piece's. NaN stays NaN.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// `v`.
    #[default]
    None,
    /// `max(v, 0)`.
    Relu,
    /// `v` if positive, else `slope * v`.
    LeakyRelu(f64),
    /// `min(max(v, 0), 6)`.
    Relu6,
    /// `min(max(v, min), max)`, also known as hard tanh. Either bound may be infinite.
    Clamp {
        /// The smallest output.
        min: f64,
        /// The largest output; not less than `min`.
        max: f64,
    },
    /// `v * sigmoid(v)`, also known as swish (Elfwing, Uchibe and Doya, 2017). 0 at negative infinity.
    Silu,
    /// `v * P(v)`, with the distribution function of the standard normal, `P(v) = (1 + erf(v / sqrt(2))) / 2` (Hendrycks and Gimpel, 2016). 0 at
    /// negative infinity.
    Gelu,
    /// The approximation of [`Gelu`](Self::Gelu) in the same paper, `v * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 * v^3))) / 2`.
    GeluTanh,
    /// `v * min(max(v + 3, 0), 6) / 6` (Howard et al., 2019). 0 at negative infinity.
    HardSwish,
    /// `1 / (1 + exp(-v))`.
    Sigmoid,
    /// `tanh(v)`.
    Tanh,
}

/// What follows the normalization, in one pass with it: `act(normalized + residual)`.
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
    pub activation: Activation,
}

impl<E> Default for Epilogue<'_, E> {
    fn default() -> Self {
        Activation::None.into()
    }
}

impl<E> From<Activation> for Epilogue<'_, E> {
    /// No residual, and this activation.
    fn from(activation: Activation) -> Self {
        Self {
            residual: None,
            activation,
        }
    }
}

impl<E: Element> Epilogue<'_, E> {
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Error> {
        Applied::<E::Accum>::new(self.activation)?;
        match self.residual {
            Some(residual) => layout.expect_elements("residual", residual.len()),
            None => Ok(()),
        }
    }
}

/// An activation as the kernels have it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Applied<A> {
    Nothing,
    Pieces(Pieces<A>),
    Curve(Curve),
}

impl<A: Accum> Applied<A> {
    /// Refuses parameters that are not finite, or not in order, once they are rounded to `A`.
    pub(crate) fn new(activation: Activation) -> Result<Self, Error> {
        let pieces = |low, slope, offset, high| Self::Pieces(Pieces::new(low, slope, offset, high));
        let exponential = |curve| Self::Curve(Curve::Exponential(curve));
        let valid = match activation {
            Activation::Clamp { min, max } => min <= max,
            Activation::LeakyRelu(slope) => A::from_f64(slope).to_f64().is_finite(),
            _ => true,
        };
        if !valid {
            return Err(Error::Value {
                name: "activation",
                expected: "of a finite slope and of bounds in order",
                got: format!("{activation:?}"),
            });
        }
        Ok(match activation {
            Activation::None => Self::Nothing,
            Activation::Relu => pieces(0.0, 0.0, 0.0, f64::NAN),
            Activation::LeakyRelu(slope) => pieces(0.0, slope, 0.0, f64::NAN),
            Activation::Relu6 => pieces(0.0, 0.0, 0.0, 6.0),
            Activation::Clamp { min, max } => pieces(min, 0.0, min, max),
            Activation::Silu => exponential(Exponential::Silu),
            Activation::Gelu => exponential(Exponential::Gelu),
            Activation::GeluTanh => exponential(Exponential::GeluTanh),
            Activation::HardSwish => Self::Curve(Curve::HardSwish),
            Activation::Sigmoid => exponential(Exponential::Sigmoid),
            Activation::Tanh => exponential(Exponential::Tanh),
        })
    }
}

/// The activations that are not piecewise linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    HardSwish,
    Exponential(Exponential),
}

/// Those that are made of an exponential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exponential {
    Silu,
    Gelu,
    GeluTanh,
    Sigmoid,
    Tanh,
}

/// The three pieces, in the type of the arithmetic. A bound of NaN is one that nothing crosses, since comparisons with NaN are false.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pieces<A> {
    pub low: A,
    pub slope: A,
    pub offset: A,
    pub high: A,
    /// What an argument is raised to before it is multiplied with the slope: a slope of 0 times negative infinity would be NaN.
    pub floor: A,
}

impl<A: Accum> Pieces<A> {
    fn new(low: f64, slope: f64, offset: f64, high: f64) -> Self {
        let [low, slope, offset, high] = [low, slope, offset, high].map(A::from_f64);
        let floor = if slope == A::default() {
            -A::LARGEST.to_f64()
        } else {
            f64::NEG_INFINITY
        };
        Self {
            low,
            slope,
            offset,
            high,
            floor: A::from_f64(floor),
        }
    }

    /// One piece: `v`.
    pub(crate) fn identity() -> Self {
        Self::new(f64::NAN, 1.0, 0.0, f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_parameters_are_refused() {
        let clamp = |min, max| Activation::Clamp { min, max };
        for activation in [
            Activation::LeakyRelu(f64::NAN),
            Activation::LeakyRelu(f64::INFINITY),
            Activation::LeakyRelu(1e39),
            clamp(1.0, 0.0),
            clamp(f64::NAN, 0.0),
        ] {
            assert!(Applied::<f32>::new(activation).is_err(), "{activation:?}");
        }
        for activation in [
            Activation::LeakyRelu(-0.5),
            clamp(0.0, 0.0),
            clamp(f64::NEG_INFINITY, 6.0),
            clamp(f64::NEG_INFINITY, f64::INFINITY),
        ] {
            assert!(Applied::<f32>::new(activation).is_ok(), "{activation:?}");
        }
        assert!(Applied::<f64>::new(Activation::LeakyRelu(1e39)).is_ok());
    }
}
