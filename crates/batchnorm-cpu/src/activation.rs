//! What can be fused behind the normalization: a residual, and a piecewise linear activation of three pieces.
//!
//! ```text
//!   act(v) = slope * v + offset   where v < low
//!            v                    between
//!            high                 where v > high
//! ```
//!
//! ReLU and its family are all of this form. The derivative is `slope`, 1 or 0 and follows from `v` alone, and `v` follows from the input and
//! the saved statistics: the backward pass recomputes it, so that no output has to be kept. A new member is one line in [`Pieces::new`].

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
        Pieces::<E::Accum>::new(self.activation)?;
        match self.residual {
            Some(residual) => layout.expect_elements("residual", residual.len()),
            None => Ok(()),
        }
    }
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
    /// Refuses parameters that are not finite, or not in order, once they are rounded to `A`.
    pub(crate) fn new(activation: Activation) -> Result<Self, Error> {
        let (low, slope, offset, high) = match activation {
            Activation::None => (f64::NAN, 1.0, 0.0, f64::NAN),
            Activation::Relu => (0.0, 0.0, 0.0, f64::NAN),
            Activation::LeakyRelu(slope) => (0.0, slope, 0.0, f64::NAN),
            Activation::Relu6 => (0.0, 0.0, 0.0, 6.0),
            Activation::Clamp { min, max } => (min, 0.0, min, max),
        };
        let valid = match activation {
            Activation::Clamp { min, max } => min <= max,
            _ => A::from_f64(slope).to_f64().is_finite(),
        };
        if !valid {
            return Err(Error::Value {
                name: "activation",
                expected: "of a finite slope and of bounds in order",
                got: format!("{activation:?}"),
            });
        }
        let [low, slope, offset, high] = [low, slope, offset, high].map(A::from_f64);
        let floor = if slope == A::default() {
            -A::LARGEST.to_f64()
        } else {
            f64::NEG_INFINITY
        };
        Ok(Self {
            low,
            slope,
            offset,
            high,
            floor: A::from_f64(floor),
        })
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
            assert!(Pieces::<f32>::new(activation).is_err(), "{activation:?}");
        }
        for activation in [
            Activation::LeakyRelu(-0.5),
            clamp(0.0, 0.0),
            clamp(f64::NEG_INFINITY, 6.0),
            clamp(f64::NEG_INFINITY, f64::INFINITY),
        ] {
            assert!(Pieces::<f32>::new(activation).is_ok(), "{activation:?}");
        }
        assert!(Pieces::<f64>::new(Activation::LeakyRelu(1e39)).is_ok());
    }
}
