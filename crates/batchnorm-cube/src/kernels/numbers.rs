//! The numbers that a kernel is given when it is launched, and the arithmetic that needs care.
//!
//! Whatever changes only a number is none of a kernel's compile-time constants: one kernel serves every slope, every epsilon and every batch
//! size. The constants of the type are data too: a shading language may have no literal for them, and a compiler that knew that `one` is 1
//! could rearrange sums whose rounding matters.

use cubecl::prelude::*;

/// All of them; a kernel reads those that it needs.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Numbers {
    /// Below it the activation's lower piece begins.
    pub low: InputScalar,
    /// The slope of the lower piece.
    pub slope: InputScalar,
    /// The value of a flat lower piece.
    pub offset: InputScalar,
    /// Above it the activation's upper piece begins.
    pub high: InputScalar,
    /// Added to the variance.
    pub epsilon: InputScalar,
    /// 1 over the values of a channel.
    pub inverse_count: InputScalar,
    /// What is kept of the running statistics.
    pub keep: InputScalar,
    /// Weight of the batch's mean in the running one.
    pub add_mean: InputScalar,
    /// Weight of the batch's variance in the running one.
    pub add_variance: InputScalar,
    /// 1.
    pub one: InputScalar,
    /// The largest finite number.
    pub most: InputScalar,
    /// The smallest normal number.
    pub least: InputScalar,
    /// Magnitudes above it are scaled down before they are squared.
    pub large: InputScalar,
    /// Magnitudes below it are scaled up before they are squared.
    pub small: InputScalar,
    /// The power of two that scales down.
    pub down: InputScalar,
    /// Its inverse.
    pub up: InputScalar,
}

/// A sum in two parts: the rounded one and what rounding took from it.
#[cube]
pub(crate) fn two_sum<A: Float, N: Size>(
    a: Vector<A, N>,
    b: Vector<A, N>,
    numbers: &Numbers,
) -> (Vector<A, N>, Vector<A, N>) {
    let sum = (a + b) * Vector::new(numbers.one.get::<A>());
    let ordered = magnitude::<A, N>(b).less_equal(&magnitude::<A, N>(a));
    let larger = select_many(ordered, a, b);
    let smaller = select_many(ordered, b, a);
    (sum, smaller - (sum - larger))
}

/// The absolute value.
#[cube]
pub(crate) fn magnitude<A: Float, N: Size>(v: Vector<A, N>) -> Vector<A, N> {
    let zero = Vector::new(A::new(0.0));
    select_many(v.less_than(&zero), zero - v, v)
}

/// What is safe to divide by: 0 becomes the smallest normal number, so that `0 / 0` is 0.
#[cube]
pub(crate) fn divisor<A: Float, N: Size>(v: Vector<A, N>, numbers: &Numbers) -> Vector<A, N> {
    let least = Vector::new(numbers.least.get::<A>());
    select_many(v.less_than(&least), least, v)
}

/// The root of `a^2 wa + b^2 wb + c^2 wc`, without overflow or underflow of the squares.
#[cube]
pub(crate) fn root_of_squares<A: Float, N: Size>(
    a: Vector<A, N>,
    wa: Vector<A, N>,
    b: Vector<A, N>,
    wb: Vector<A, N>,
    c: Vector<A, N>,
    wc: Vector<A, N>,
    numbers: &Numbers,
) -> Vector<A, N> {
    let size = magnitude::<A, N>(a) + magnitude::<A, N>(b) + magnitude::<A, N>(c);
    let large = size.greater_than(&Vector::new(numbers.large.get::<A>()));
    let small = size.less_than(&Vector::new(numbers.small.get::<A>()));
    let one = Vector::new(numbers.one.get::<A>());
    let up = Vector::new(numbers.up.get::<A>());
    let down = Vector::new(numbers.down.get::<A>());
    let scale = select_many(large, down, select_many(small, up, one));
    let back = select_many(large, up, select_many(small, down, one));
    let a = a * scale;
    let b = b * scale;
    let c = c * scale;
    let squares = a * a * wa + b * b * wb + c * c * wc;
    squares.sqrt() * back
}

/// `1 / sqrt(variance + epsilon)`, finite even where both are 0: a constant channel then gives exactly beta, not `0 * infinity`.
#[cube]
pub(crate) fn inverse_of_variance<A: Float, P: Size>(
    variance: Vector<A, P>,
    numbers: &Numbers,
) -> Vector<A, P> {
    let sum = variance + Vector::new(numbers.epsilon.get::<A>());
    let least = Vector::new(numbers.least.get::<A>());
    let tiny = magnitude::<A, P>(sum).less_than(&least);
    Vector::new(A::new(1.0)) / select_many(tiny, least, sum).sqrt()
}

/// The same of a standard deviation, whose square may be out of range.
#[cube]
pub(crate) fn inverse_of_deviation<A: Float, P: Size>(
    deviation: Vector<A, P>,
    numbers: &Numbers,
) -> Vector<A, P> {
    let large = deviation.greater_than(&Vector::new(numbers.large.get::<A>()));
    // Beside the square of a large deviation epsilon is nothing.
    let inverse = Vector::new(A::new(1.0)) / deviation;
    select_many(
        large,
        inverse,
        inverse_of_variance::<A, P>(deviation * deviation, numbers),
    )
}
