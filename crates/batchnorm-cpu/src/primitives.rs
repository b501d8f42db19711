//! The four passes that everything is made of, one at a time.
//!
//! Between them there is only algebra on `[channels]` vectors, so statistics that are masked, merged between devices or blended with running
//! ones need no kernels of their own:
//!
//! ```text
//! moments        x -> mean, m2                          normalize    x -> act((x - mean) * scale + shift + residual)
//! backward_sums  x, dy -> sum(g), sum(g * (x - mean))   input_grad   x, dy -> a * g + b * (x - mean) + c
//! ```
//!
//! where `g = dy * act'(z)` and `z` is the argument of the activation.

use crate::chunks::statistics;
use crate::parallel;
use crate::plan::Plan;
use crate::simd::Isa;
use crate::simd::operands::{ReadPair, ReadPairWrite, ReadWrite};
use crate::simd::passes::{Forward, Gradient};
use crate::simd::reduce::{MomentsOf, SumsOf};
use crate::simd::region::Region;
use crate::simd::tail::{Activated, Plain, Residual, Tail};
use crate::stream::{Epilogue, Output, Stream};
use crate::sweep::map;
use crate::{Accum, Activation, Element, Error, Layout};

/// Parameters of the normalization as it is applied, `[channels]` each: `(x - mean) * scale + shift`.
#[derive(Debug, Clone, Copy)]
pub struct Normalization<'a, A> {
    /// Subtracted first.
    pub mean: &'a [A],
    /// Multiplied with; `gamma * inv_std` in batch normalization.
    pub scale: &'a [A],
    /// Added; `beta` in batch normalization.
    pub shift: &'a [A],
}

impl<'a, A> Normalization<'a, A> {
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Error> {
        layout.expect_channels("mean", self.mean.len())?;
        layout.expect_channels("scale", self.scale.len())?;
        layout.expect_channels("shift", self.shift.len())
    }

    pub(crate) fn params(&self) -> [&'a [A]; 3] {
        [self.mean, self.scale, self.shift]
    }
}

/// Coefficients of the gradient of the input, `[channels]` each: `a * g + b * (x - mean) + c`.
#[derive(Debug, Clone, Copy)]
pub struct Coefficients<'a, A> {
    /// Factor of the gradient.
    pub a: &'a [A],
    /// Factor of the centred input.
    pub b: &'a [A],
    /// Constant.
    pub c: &'a [A],
}

/// Calls a function that is generic over the [`Tail`] with that of an epilogue.
macro_rules! with_tail {
    ($epilogue: expr, |$tail: ident| $body: expr) => {{
        let pieces = $epilogue.activation.pieces();
        match ($epilogue.residual, $epilogue.activation) {
            (None, Activation::None) => {
                let $tail = Plain;
                $body
            }
            (None, _) => {
                let $tail = Activated(pieces);
                $body
            }
            (Some(residual), _) => {
                let $tail = Residual::new(residual, pieces);
                $body
            }
        }
    }};
}
pub(crate) use with_tail;

/// The mean of each channel and the sum `m2` of its squared differences from the mean.
///
/// The biased variance is `m2 / layout.samples_per_channel()`. In contrast to a variance, `m2` can be merged with that of other data. Without
/// any samples both are 0.
///
/// # Errors
///
/// [`Error::Length`] unless `x` has `layout.elements()` values, `mean` and `m2` `layout.channels()`.
pub fn moments<E: Element>(
    layout: Layout,
    x: &[E],
    mean: &mut [E::Accum],
    m2: &mut [E::Accum],
) -> Result<(), Error> {
    layout.expect_elements("x", x.len())?;
    layout.expect_channels("mean", mean.len())?;
    layout.expect_channels("m2", m2.len())?;
    let plan = Plan::new::<E>(layout);
    let region = Region::read(&plan.layout(), x);
    let [mut first, mut second] = [Vec::new(), Vec::new()];
    let threads = parallel::threads(size_of_val(x));
    // The moments have no parameters, but as many as there are channels are split with them.
    let none = &mean.to_vec()[..];
    statistics::<E, MomentsOf>(
        Isa::current(),
        &plan,
        region,
        [none; 3],
        threads,
        [&mut first, &mut second],
    );
    for (out, stats) in [(mean, first), (m2, second)] {
        out.iter_mut()
            .zip(stats)
            .for_each(|(out, s)| *out = E::Accum::from_f64(s));
    }
    Ok(())
}

/// `act((x - mean) * scale + shift + residual)`: inference, or the second half of training with statistics from elsewhere.
///
/// # Errors
///
/// [`Error::Length`] unless both sides of `stream` and the residual have `layout.elements()` values and the parameters `layout.channels()`;
/// [`Error::Value`] for senseless parameters of the activation.
pub fn normalize<E: Element>(
    layout: Layout,
    stream: Stream<'_, E>,
    params: Normalization<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
) -> Result<(), Error> {
    stream.check(&layout, "x", "y")?;
    params.check(&layout)?;
    epilogue.check(&layout)?;
    with_tail!(epilogue, |tail| run_normalize(
        layout,
        Region::read_write(&layout.flattened(), stream, tail),
        params
    ));
    Ok(())
}

fn run_normalize<E: Element, T: Tail<E>>(
    layout: Layout,
    region: Region<'_, ReadWrite<E, T>>,
    params: Normalization<'_, E::Accum>,
) {
    map::<E, Forward<T>, 3>(region, layout, params.params(), 2);
}

/// `sum(g)` and `sum(g * (x - mean))` of each channel, where `g = dy * act'(z)`.
///
/// `params` are those that the forward pass normalized with; scale and shift only matter where an activation follows. From the two sums follow
/// the gradients of gamma and beta, and the [`Coefficients`] of that of the input.
///
/// # Errors
///
/// As for [`normalize`].
pub fn backward_sums<E: Element>(
    layout: Layout,
    x: &[E],
    dy: &[E],
    params: Normalization<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
    sum: &mut [E::Accum],
    sum_centred: &mut [E::Accum],
) -> Result<(), Error> {
    layout.expect_elements("x", x.len())?;
    layout.expect_elements("dy", dy.len())?;
    params.check(&layout)?;
    epilogue.check(&layout)?;
    layout.expect_channels("sum", sum.len())?;
    layout.expect_channels("sum_centred", sum_centred.len())?;
    let [first, second] = with_tail!(epilogue, |tail| {
        run_sums(
            layout,
            Region::read_pair(&layout.flattened(), x, dy, tail),
            params,
        )
    });
    for (out, stats) in [(sum, first), (sum_centred, second)] {
        out.iter_mut()
            .zip(stats)
            .for_each(|(out, s)| *out = E::Accum::from_f64(s));
    }
    Ok(())
}

fn run_sums<E: Element, T: Tail<E>>(
    layout: Layout,
    region: Region<'_, ReadPair<E, T>>,
    params: Normalization<'_, E::Accum>,
) -> [Vec<f64>; 2] {
    let mut out = [Vec::new(), Vec::new()];
    let threads = parallel::threads(layout.elements() * size_of::<E>() * 2);
    let plan = Plan::new::<E>(layout);
    statistics::<E, SumsOf<T>>(
        Isa::current(),
        &plan,
        region,
        params.params(),
        threads,
        out.each_mut(),
    );
    out
}

/// `a * g + b * (x - mean) + c`, where `g = dy * act'(z)`, from `stream` (dy to dx); and `g` itself into `dresidual`.
///
/// `params` are those that the forward pass normalized with.
///
/// # Errors
///
/// As for [`normalize`], and [`Error::Value`] for `dresidual` without a residual.
pub fn input_grad<E: Element>(
    layout: Layout,
    x: &[E],
    stream: Stream<'_, E>,
    params: Normalization<'_, E::Accum>,
    coefficients: Coefficients<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
    dresidual: Option<Output<'_, E>>,
) -> Result<(), Error> {
    params.check(&layout)?;
    layout.expect_channels("a", coefficients.a.len())?;
    layout.expect_channels("b", coefficients.b.len())?;
    layout.expect_channels("c", coefficients.c.len())?;
    check_tensors(&layout, x, &stream, &epilogue, &dresidual)?;
    let Normalization { mean, scale, shift } = params;
    let Coefficients { a, b, c } = coefficients;
    with_tail!(epilogue, |tail| {
        let region = Region::read_pair_write(&layout.flattened(), x, stream, tail, dresidual);
        run_grad(layout, region, [mean, scale, shift, a, b, c]);
    });
    Ok(())
}

fn run_grad<E: Element, T: Tail<E>>(
    layout: Layout,
    region: Region<'_, ReadPairWrite<E, T>>,
    params: [&[E::Accum]; 6],
) {
    map::<E, Gradient<T>, 6>(region, layout, params, 3);
}

pub(crate) fn check_tensors<E: Element>(
    layout: &Layout,
    x: &[E],
    stream: &Stream<'_, E>,
    epilogue: &Epilogue<'_, E>,
    dresidual: &Option<Output<'_, E>>,
) -> Result<(), Error> {
    layout.expect_elements("x", x.len())?;
    stream.check(layout, "dy", "dx")?;
    epilogue.check(layout)?;
    match (dresidual, epilogue.residual) {
        (Some(_), None) => Err(Error::Value {
            name: "dresidual",
            expected: "left out where there is no residual",
            got: "an output".into(),
        }),
        (Some(out), Some(_)) => layout.expect_elements("dresidual", out.len()),
        (None, _) => Ok(()),
    }
}
