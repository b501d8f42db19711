//! The backward pass.
//!
//! With `z = (x - mean) * s * gamma + beta (+ residual)`, `s = inv_std` and `y = act(z)`, the gradient that arrives at `z` is
//! `g = dy * act'(z)`. It is recomputed from x, so the output need not be kept. It is also the gradient of the residual.
//!
//! **Parameters.** From `z = xh * gamma + beta` with `xh = (x - mean) * s`:
//!
//! ```text
//! beta_grad = sum(g)        gamma_grad = sum(g * xh) = s * sum(g * (x - mean))
//! ```
//!
//! **Input.** The mean and the variance of the batch depend on every x of the channel. With n values, `d mean / dx = 1/n` and, because the
//! differences sum to zero, `d var / dx_i = 2 (x_i - mean) / n`, hence `d s / dx_i = -s^3 (x_i - mean) / n` and
//!
//! ```text
//! d xh_j / dx_i = s * ([i = j] - 1/n - xh_i * xh_j / n)
//! x_grad_i = gamma * s * (g_i - sum(g) / n - xh_i * sum(g * xh) / n)
//!          = a * g_i + b * (x_i - mean) + c    a = gamma * s,  b = -a * s^2 * sum(g * (x - mean)) / n,  c = -a * sum(g) / n
//! ```
//!
//! Given statistics are constants: `x_grad = a * g`, and the terms in b and c are not computed, not even as zeros.
//!
//! **Passes over memory.** With statistics of the batch there are two reductions per channel, and then x_grad: x and dy are read once and x_grad
//! is written once (3 passes) where a group of channels fits the second-level cache, otherwise x and dy are read twice (5). With given ones
//! x_grad alone is 2 passes (3 with an activation). What nobody wants is not computed.
//!
//! Worked example: x `[1, 3]`, dy `[1, 0]`, gamma 1, epsilon next to 0: mean 2, s 1, sums 1 and -1, so a = 1, b = 1/2, c = -1/2 and x_grad =
//! `[1 - 1/2 - 1/2, 0 + 1/2 - 1/2] = [0, 0]`, as it must be: two values are normalized to -1 and 1 whatever they are.
//!
//! **Range.** Products of g and `x - mean` are summed in the type of the arithmetic: for `f32`, about 4096 of them must stay below 3e38. Where `s^2`
//! leaves the range of `f32` (a spread beyond 1e19) x_grad, itself smaller than 1e-19, loses its part in b.

use crate::activation::{Activation, Applied, Epilogue};
use crate::cut::PerChannel;
use crate::driver::{self, Next, Reduced};
use crate::forward::{applied, with_residual};
use crate::memory::{InOut, Output};
use crate::normalize::{Normalized, set_applied};
use crate::simd::kernels::{Activate, Curved, GradientSums, Kernel, Nothing, XGradient};
use crate::simd::tasks::Sums;
use crate::simd::tile::Tile;
use crate::simd::weighted::{Behind, WeightedGradientSums, WeightedXGradient};
use crate::simd::{Isa, Plain};
use crate::statistics::{Affine, Given, Statistics};
use crate::{Accum, Element, Error, Layout, Weights};

/// The statistics that the forward pass normalized with.
#[derive(Debug, Clone, Copy)]
pub enum Saved<'a, A> {
    /// Those of its input, as [`train`](crate::train) wrote them: x_grad has a part that goes through them.
    Batch(Statistics<&'a [A]>),
    /// Given ones, as in [`normalize`](crate::normalize): they are constants.
    Given(Given<'a, A>),
}

/// Where gradients go. Those left out are not computed.
pub struct Gradients<'a, E: Element> {
    /// Of the residual, `[outer, channels, inner]`; only if there is one.
    pub residual: Option<Output<'a, E>>,
    /// Of gamma, `[channels]`.
    pub gamma: Option<&'a mut [E::Accum]>,
    /// Of beta, `[channels]`.
    pub beta: Option<&'a mut [E::Accum]>,
}

impl<E: Element> Default for Gradients<'_, E> {
    fn default() -> Self {
        Self {
            residual: None,
            gamma: None,
            beta: None,
        }
    }
}

impl<E: Element> Gradients<'_, E> {
    pub(crate) fn check(&self, layout: &Layout, epilogue: &Epilogue<'_, E>) -> Result<(), Error> {
        for (name, gradient) in [("gamma_grad", &self.gamma), ("beta_grad", &self.beta)] {
            if let Some(gradient) = gradient {
                layout.expect_channels(name, gradient.len())?;
            }
        }
        if let Some(gradient) = &self.residual {
            layout.expect_elements("residual_grad", gradient.len())?;
            if epilogue.residual.is_none() {
                return Err(Error::Value {
                    name: "residual_grad",
                    expected: "left out where there is no residual",
                    got: "an output".into(),
                });
            }
        }
        Ok(())
    }
}

/// The backward pass of [`train`](crate::train) or [`normalize`](crate::normalize), as `saved` says: the gradients of x, gamma, beta and the residual.
///
/// `y_grad` is the gradient that arrives, and where that of x goes: to other memory, over the gradient ([`InOut::in_place`]), which saves the
/// memory and the page faults of a fresh one, or nowhere ([`InOut::only`]). `epilogue` is that of the forward pass; the values of the
/// residual only matter where an activation follows.
///
/// # Errors
///
/// [`Error::Length`] for slices that do not have `layout.elements()` or `layout.channels()` values; [`Error::Value`] for senseless parameters of
/// the activation, for an epsilon that is not finite and positive, and for a residual gradient without a residual.
pub fn backward<E: Element>(
    layout: Layout,
    x: &[E],
    y_grad: InOut<'_, E>,
    saved: Saved<'_, E::Accum>,
    affine: Affine<'_, E::Accum>,
    epilogue: Epilogue<'_, E>,
    out: Gradients<'_, E>,
) -> Result<(), Error> {
    layout.expect_elements("x", x.len())?;
    y_grad.check(&layout, "y_grad", "x_grad")?;
    match &saved {
        Saved::Batch(statistics) => statistics.check(&layout)?,
        Saved::Given(given) => given.check(&layout)?,
    }
    affine.check(&layout)?;
    epilogue.check(&layout)?;
    out.check(&layout, &epilogue)?;
    (E::compiled().backward)(Backward {
        layout,
        x,
        weighted: None,
        y_grad,
        saved,
        affine,
        epilogue,
        out,
    });
    Ok(())
}

/// The weights of positions, and their sums by channel where the statistics are those of the batch.
type Weighted<'a, A> = (Weights<'a, A>, &'a [A]);

/// A checked call of [`backward`] or [`backward_weighted`](crate::backward_weighted).
pub(crate) struct Backward<'a, E: Element> {
    pub layout: Layout,
    pub x: &'a [E],
    pub weighted: Option<Weighted<'a, E::Accum>>,
    pub y_grad: InOut<'a, E>,
    pub saved: Saved<'a, E::Accum>,
    pub affine: Affine<'a, E::Accum>,
    pub epilogue: Epilogue<'a, E>,
    pub out: Gradients<'a, E>,
}

impl<E: Element> Backward<'_, E> {
    pub(crate) fn run(mut self) {
        let activation = applied(self.epilogue.activation);
        if let Applied::Nothing = activation
            && let Some(out) = self.out.residual.take()
        {
            // g is dy, so this is a copy; before dy may be overwritten.
            let ones = vec![E::Accum::from_f64(1.0); self.layout.channels()];
            scaled(self.layout, self.y_grad.input_to(out), &ones);
        }
        let residual = self.epilogue.residual.is_some();
        match (activation, residual) {
            (Applied::Nothing, _) => self.behind::<_, false>(Nothing),
            (Applied::Pieces(pieces), false) => self.behind::<_, false>(pieces),
            (Applied::Pieces(pieces), true) => self.behind::<_, true>(pieces),
            (Applied::Curve(curve), _) => self.behind::<_, true>(Curved { curve, residual }),
        }
    }

    fn behind<Act: Activate<E::Accum>, const RESIDUAL: bool>(self, activation: Act) {
        let of_batch = self.y_grad.has_output() && matches!(self.saved, Saved::Batch(_));
        let of_batch = E::Accum::from_f64(f64::from(u8::from(of_batch)));
        let behind = Behind {
            activation,
            residual: self.epilogue.residual.is_some(),
        };
        match self.weighted {
            None => self.with(
                GradientSums::<_, RESIDUAL>(activation),
                XGradient::<_, _, RESIDUAL> {
                    activation,
                    of_batch,
                },
            ),
            Some(_) => self.with(
                WeightedGradientSums(behind),
                WeightedXGradient { behind, of_batch },
            ),
        }
    }

    fn with<R: Kernel<E::Accum>, K: Kernel<E::Accum>>(self, sums: R, kernel: K) {
        let Self {
            layout,
            x,
            weighted,
            y_grad,
            saved,
            affine,
            epilogue,
            out,
        } = self;
        let [gamma_grad, beta_grad] = [out.gamma, out.beta].map(|g| g.unwrap_or_default());
        let parameters = !(gamma_grad.is_empty() && beta_grad.is_empty());
        let x_grad = y_grad.has_output();
        let mut buffer = vec![E::Accum::default(); 7 * layout.channels()];
        let mut rest = &mut buffer[..];
        let [own_inv_std, mean, scale, shift, a, b, c] =
            [(); 7].map(|()| rest.split_off_mut(..layout.channels()).expect("seven"));
        let (mean_lo, inv_std, of_batch) = match saved {
            Saved::Batch(statistics) => {
                mean.copy_from_slice(statistics.mean);
                (Some(statistics.mean_lo), statistics.inv_std, x_grad)
            }
            Saved::Given(given) => {
                mean.copy_from_slice(given.mean);
                Isa::current().run(Plain(|| given.set_inv_std(own_inv_std)));
                (given.mean_lo, &*own_inv_std, false)
            }
        };
        set_applied(affine, mean_lo, inv_std, [&mut *scale, &mut *shift]);
        if x_grad {
            a.copy_from_slice(scale);
        } else {
            a.fill(E::Accum::from_f64(1.0));
        }
        let activated = epilogue.activation != Activation::None;
        if !of_batch && !parameters && !activated {
            if x_grad {
                scaled(layout, y_grad, scale);
            }
            return;
        }

        let writes = x_grad || out.residual.is_some();
        if !writes && !parameters {
            return;
        }
        let tile = Tile::new(&layout.flattened()).read(x).read_write(y_grad);
        let mut tile = with_residual(tile, epilogue, kernel);
        if let Some((weights, _)) = weighted {
            tile = tile.weigh(&layout, weights);
        }
        // Without x_grad it is the first output.
        if let Some(residual_grad) = out.residual {
            tile = tile.write(residual_grad);
        }
        let arrays: PerChannel<'_, E::Accum> = [mean, scale, shift, a, b, c, gamma_grad, beta_grad];
        let n = layout.samples_per_channel().max(1) as f64;
        let finish = |Reduced { range, pairs, .. }: Reduced<'_>,
                      arrays: &mut PerChannel<'_, E::Accum>| {
            let mean_lo = mean_lo.map(|low| &low[range.clone()]);
            let inv_std = &inv_std[range.clone()];
            match weighted {
                None => gradients(|_| n, pairs, mean_lo, inv_std, of_batch, arrays),
                Some((_, sums)) => {
                    let weight = |i: usize| sums[range.start + i].to_f64();
                    gradients(weight, pairs, mean_lo, inv_std, of_batch, arrays);
                }
            }
            Next::Done
        };
        if !(of_batch || parameters) {
            driver::apply(layout, tile, kernel, std::array::from_fn(|i| &*arrays[i]));
        } else if writes {
            driver::reduce_then_apply(layout, tile, (Sums(sums), kernel), arrays, finish);
        } else {
            driver::reduce(layout, tile, Sums(sums), arrays, finish);
        }
    }
}

/// What follows from the two sums of channels of `count` values, or weights, each: the gradients of gamma and beta, if wanted, and b and c.
#[inline(always)]
fn gradients<A: Accum>(
    count: impl Fn(usize) -> f64,
    [sums, products]: [&[f64]; 2],
    mean_lo: Option<&[A]>,
    inv_std: &[A],
    of_batch: bool,
    [_, scale, _, _, b, c, gamma_grad, beta_grad]: &mut PerChannel<'_, A>,
) {
    for i in 0..inv_std.len() {
        let low = mean_lo.map_or(0.0, |low| low[i].to_f64());
        let s = inv_std[i].to_f64();
        // The kernel summed g * (x - mean) with the rounded mean.
        let product = if low == 0.0 {
            products[i]
        } else {
            products[i] - low * sums[i]
        };
        if let Some(gamma_grad) = gamma_grad.get_mut(i) {
            *gamma_grad = A::from_f64(product * s);
        }
        if let Some(beta_grad) = beta_grad.get_mut(i) {
            *beta_grad = A::from_f64(sums[i]);
        }
        let n = if of_batch { count(i) } else { 0.0 };
        if n > 0.0 {
            let a = scale[i].to_f64();
            let slope = -(product / n * s) * s * a;
            let through_low = if low == 0.0 { 0.0 } else { slope * low };
            b[i] = A::from_f64(slope);
            c[i] = A::from_f64(-a * (sums[i] / n) - through_low);
        }
    }
}

/// Multiplies a tensor with a factor per channel.
fn scaled<E: Element>(layout: Layout, tensor: InOut<'_, E>, factor: &[E::Accum]) {
    // Adding -0 changes nothing, not even the sign of a zero.
    let [zero, nothing] = [0.0, -0.0].map(|v| vec![E::Accum::from_f64(v); layout.channels()]);
    let params = [&zero[..], factor, &nothing];
    let epilogue = Epilogue::default();
    Normalized {
        layout,
        x: tensor,
        weights: None,
        params,
        epilogue,
    }
    .run();
}
