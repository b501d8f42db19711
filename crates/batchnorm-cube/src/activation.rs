//! The activations that can be fused. ReLU and its family are piecewise linear, of three pieces; the others are curves (`kernels/curves.rs`).
//!
//! ```text
//!   act(v) = slope * v + offset   where v < low
//!            v                    between
//!            high                 where v > high
//! ```
//!
//! Which pieces exist, or which curve it is, is known when a kernel is compiled, the numbers of the pieces when it is launched: no
//! activation costs nothing, and one kernel serves every slope. At a kink the derivative is that of PyTorch: the outer piece's. It follows
//! from `v` alone, which the backward pass recomputes from the input and the statistics: no output needs to be kept.

use cubecl::prelude::*;

use crate::Error;
use crate::kernels::curves::{derivative, or_zero, value};
use crate::kernels::numbers::Numbers;

/// What is applied to the normalized value (and the residual, if there is one).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// `v`.
    #[default]
    None,
    /// `max(v, 0)`; NaN stays NaN where the device's comparisons follow IEEE 754.
    Relu,
    /// `v` if positive, else `slope * v`.
    LeakyRelu(f64),
    /// `min(max(v, 0), 6)`.
    Relu6,
    /// `min(max(v, min), max)`, also known as hard tanh. An infinite bound is none.
    Clamp {
        /// The smallest output.
        min: f64,
        /// The largest output; not less than `min`.
        max: f64,
    },
    /// `v * sigmoid(v)`, also known as swish (Elfwing, Uchibe and Doya, 2017). 0 at negative infinity.
    Silu,
    /// `v * (1 + erf(v / sqrt(2))) / 2` (Hendrycks and Gimpel, 2016). 0 at negative infinity.
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

impl Activation {
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

    /// Which pieces there are.
    pub(crate) fn shape(&self) -> Pieces {
        let curve = match *self {
            Activation::Silu => Some(Curve::Silu),
            Activation::Gelu => Some(Curve::Gelu),
            Activation::GeluTanh => Some(Curve::GeluTanh),
            Activation::HardSwish => Some(Curve::HardSwish),
            Activation::Sigmoid => Some(Curve::Sigmoid),
            Activation::Tanh => Some(Curve::Tanh),
            _ => None,
        };
        Pieces {
            curve,
            low: match *self {
                _ if curve.is_some() => Low::Open,
                Activation::None => Low::Open,
                // A slope of 0 is a flat piece: `0 * v` is NaN where `v` is infinite.
                Activation::LeakyRelu(slope) if slope != 0.0 => Low::Sloped,
                Activation::Clamp { min, .. } if min == f64::NEG_INFINITY => Low::Open,
                _ => Low::Flat,
            },
            high: match *self {
                Activation::Relu6 => true,
                Activation::Clamp { max, .. } => max != f64::INFINITY,
                _ => false,
            },
        }
    }

    /// Their numbers: low, slope, value below (of the flat piece), high.
    pub(crate) fn numbers(&self) -> [f64; 4] {
        match *self {
            Activation::LeakyRelu(slope) => [0.0, slope, 0.0, 0.0],
            Activation::Relu6 => [0.0, 0.0, 0.0, 6.0],
            Activation::Clamp { min, max } => [min, 0.0, min, max],
            _ => [0.0; 4],
        }
    }
}

/// The pieces of an activation, known when the kernel is compiled; or the curve, which has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Pieces {
    pub curve: Option<Curve>,
    pub low: Low,
    pub high: bool,
}

impl Pieces {
    /// Whether anything is computed at all.
    pub fn any(&self) -> bool {
        self.low != Low::Open || self.high || self.curve.is_some()
    }
}

/// The activations that are not piecewise linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Curve {
    Silu,
    Gelu,
    GeluTanh,
    HardSwish,
    Sigmoid,
    Tanh,
}

/// The piece below `low`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Low {
    /// There is none.
    Open,
    /// A constant. It is kept apart because `0 * v` is NaN where `v` is infinite.
    Flat,
    /// A line.
    Sloped,
}

/// `act(v)`.
#[cube]
pub(crate) fn activate<A: Float, N: Size>(
    v: Vector<A, N>,
    numbers: &Numbers,
    #[comptime] pieces: Pieces,
) -> Vector<A, N> {
    let mut out = v;
    if comptime!(pieces.curve.is_some()) {
        out = value::<A, N>(v, comptime!(pieces.curve.unwrap()));
    }
    if comptime!(pieces.low == Low::Flat) {
        let low = Vector::new(numbers.low.get::<A>());
        let offset = Vector::new(numbers.offset.get::<A>());
        out = select_many(v.less_than(&low), offset, out);
    }
    if comptime!(pieces.low == Low::Sloped) {
        let low = Vector::new(numbers.low.get::<A>());
        let slope = Vector::new(numbers.slope.get::<A>());
        let offset = Vector::new(numbers.offset.get::<A>());
        out = select_many(v.less_than(&low), v * slope + offset, out);
    }
    if comptime!(pieces.high) {
        let high = Vector::new(numbers.high.get::<A>());
        out = select_many(v.greater_than(&high), high, out);
    }
    out
}

/// `dy * act'(v)`.
#[cube]
pub(crate) fn activation_grad<A: Float, N: Size>(
    v: Vector<A, N>,
    dy: Vector<A, N>,
    numbers: &Numbers,
    #[comptime] pieces: Pieces,
) -> Vector<A, N> {
    let mut grad = dy;
    let zero = Vector::new(A::new(0.0));
    if comptime!(pieces.curve.is_some()) {
        let slope = derivative::<A, N>(v, comptime!(pieces.curve.unwrap()));
        grad = or_zero::<A, N>(slope, dy);
    }
    if comptime!(pieces.low == Low::Flat) {
        let low = Vector::new(numbers.low.get::<A>());
        grad = select_many(v.less_equal(&low), zero, grad);
    }
    if comptime!(pieces.low == Low::Sloped) {
        let low = Vector::new(numbers.low.get::<A>());
        let slope = Vector::new(numbers.slope.get::<A>());
        grad = select_many(v.less_equal(&low), dy * slope, grad);
    }
    if comptime!(pieces.high) {
        let high = Vector::new(numbers.high.get::<A>());
        grad = select_many(v.greater_equal(&high), zero, grad);
    }
    grad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_parameters_are_refused() {
        assert!(Activation::LeakyRelu(f64::NAN).validate().is_err());
        assert!(Activation::Clamp { min: 1.0, max: 0.0 }.validate().is_err());
        let nan = Activation::Clamp {
            min: f64::NAN,
            max: 0.0,
        };
        assert!(nan.validate().is_err());
        assert!(Activation::Clamp { min: 0.0, max: 0.0 }.validate().is_ok());
    }

    #[test]
    fn infinite_bounds_are_none() {
        let clamp = |min, max| Activation::Clamp { min, max };
        let (least, most) = (f64::NEG_INFINITY, f64::INFINITY);
        assert!(clamp(least, most).validate().is_ok());
        assert!(!clamp(least, most).shape().any());
        assert_eq!(clamp(least, 6.0).shape().low, Low::Open);
        assert_eq!(clamp(0.0, most).shape(), Activation::Relu.shape());
        assert_eq!(Activation::LeakyRelu(0.0).shape(), Activation::Relu.shape());
    }

    #[test]
    fn no_activation_has_no_piece() {
        assert!(!Activation::None.shape().any());
        assert!(Activation::Relu.shape().any());
        assert!(Activation::Silu.shape().any());
    }
}
