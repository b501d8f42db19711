//! The activations that can be fused: piecewise linear ones of three pieces.
//!
//! ```text
//!   act(v) = slope * v + offset   where v < low
//!            v                    between
//!            high                 where v > high
//! ```
//!
//! ReLU and its family are all of this form. The derivative is `slope`, 1 or 0 and follows from `v` alone, and `v` follows from the input and
//! the saved statistics: the backward pass recomputes it and no output needs to be kept. A new member is one line in [`Activation::pieces`].

use crate::{Accum, Error};

/// What is applied to the normalized value (and the residual, if there is one).
///
/// At a kink the derivative is that of PyTorch: the outer piece's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// `v`.
    #[default]
    None,
    /// `max(v, 0)`; NaN stays NaN.
    Relu,
    /// `v` if positive, else `slope * v`.
    LeakyRelu(f64),
    /// `min(max(v, 0), 6)`.
    Relu6,
    /// `min(max(v, min), max)`, also known as hard tanh.
    Clamp {
        /// The smallest output.
        min: f64,
        /// The largest output; not less than `min`.
        max: f64,
    },
}

/// The three pieces, in the type of the arithmetic. A bound of NaN is one that nothing crosses, since comparisons with NaN are false.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pieces<A> {
    pub low: A,
    pub slope: A,
    pub offset: A,
    pub high: A,
}

impl Activation {
    /// The value at `v`.
    pub fn value(&self, v: f64) -> f64 {
        let Pieces {
            low,
            slope,
            offset,
            high,
        } = self.pieces::<f64>();
        match v {
            _ if v < low => slope * v.max(f64::MIN) + offset,
            _ if v > high => high,
            _ => v,
        }
    }

    /// The derivative at `v`.
    pub fn derivative(&self, v: f64) -> f64 {
        let Pieces {
            low, slope, high, ..
        } = self.pieces::<f64>();
        match v {
            _ if v <= low => slope,
            _ if v >= high => 0.0,
            _ => 1.0,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let valid = match *self {
            Activation::LeakyRelu(slope) => slope.is_finite(),
            Activation::Clamp { min, max } => min <= max,
            _ => true,
        };
        match valid {
            true => Ok(()),
            false => Err(Error::Value {
                name: "activation",
                expected: "of a finite slope and of bounds in order",
                got: format!("{self:?}"),
            }),
        }
    }

    pub(crate) fn pieces<A: Accum>(&self) -> Pieces<A> {
        let (low, slope, offset, high) = match *self {
            Activation::None => (f64::NAN, 1.0, 0.0, f64::NAN),
            Activation::Relu => (0.0, 0.0, 0.0, f64::NAN),
            Activation::LeakyRelu(slope) => (0.0, slope, 0.0, f64::NAN),
            Activation::Relu6 => (0.0, 0.0, 0.0, 6.0),
            Activation::Clamp { min, max } => (min, 0.0, min, max),
        };
        let [low, slope, offset, high] = [low, slope, offset, high].map(A::from_f64);
        Pieces {
            low,
            slope,
            offset,
            high,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_derivatives_follow_the_definitions() {
        let clamp = Activation::Clamp {
            min: -1.0,
            max: 2.0,
        };
        let cases: [(Activation, f64, f64, f64); 14] = [
            (Activation::None, -3.0, -3.0, 1.0),
            (Activation::None, f64::INFINITY, f64::INFINITY, 1.0),
            (Activation::Relu, -3.0, 0.0, 0.0),
            (Activation::Relu, 0.0, 0.0, 0.0),
            (Activation::Relu, 3.0, 3.0, 1.0),
            (Activation::Relu, f64::NEG_INFINITY, 0.0, 0.0),
            (Activation::LeakyRelu(0.1), -2.0, -0.2, 0.1),
            (Activation::LeakyRelu(0.1), 2.0, 2.0, 1.0),
            (Activation::Relu6, 5.0, 5.0, 1.0),
            (Activation::Relu6, 6.0, 6.0, 0.0),
            (Activation::Relu6, 7.0, 6.0, 0.0),
            (clamp, -1.5, -1.0, 0.0),
            (clamp, 1.5, 1.5, 1.0),
            (clamp, 2.5, 2.0, 0.0),
        ];
        for (act, v, value, derivative) in cases {
            assert_eq!(
                (act.value(v), act.derivative(v)),
                (value, derivative),
                "{act:?} at {v}"
            );
        }
        assert!(Activation::Relu.value(f64::NAN).is_nan());
    }

    #[test]
    fn senseless_parameters_are_refused() {
        assert!(Activation::LeakyRelu(f64::NAN).validate().is_err());
        assert!(Activation::Clamp { min: 1.0, max: 0.0 }.validate().is_err());
        assert!(
            Activation::Clamp {
                min: f64::NAN,
                max: 0.0
            }
            .validate()
            .is_err()
        );
        assert!(Activation::Clamp { min: 0.0, max: 0.0 }.validate().is_ok());
    }
}
