//! The backward operations: of training, and of normalization with given statistics.

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::args::{Affine, Center, Epilogue, Gradients, Weights, check_number};
use crate::blueprint::{GradientBlueprint, Source};
use crate::cost::Launches;
use crate::gradients::Pass;
use crate::launch::{Session, Values};
use crate::normalize::{Given, element_blueprint};
use crate::strategy::Cut;
use crate::support::{Route, normalize_backward_needs, train_backward_needs};
use crate::{Error, Problem};

/// The gradients of [`train`](crate::train). `weights` are those that it was given, which have no gradient, and `statistics` is what it wrote.
///
/// One launch where a channel is one cube's, two where a few share it or where neither the gradient of the input nor that of the residual is
/// wanted, else three. Of an empty tensor, or where nothing is wanted, nothing is written and nothing launched.
#[allow(clippy::too_many_arguments)]
pub fn train_backward(
    client: &Client,
    problem: Problem,
    x: &Handle,
    weights: Option<Weights<'_>>,
    dy: &Handle,
    affine: Affine<'_>,
    statistics: &Handle,
    epilogue: Epilogue<'_>,
    out: Gradients<'_>,
) -> Result<Launches, Error> {
    let call = Call {
        x,
        dy,
        given: Given::of_batch(statistics, affine, weights),
        epilogue,
        out,
    };
    let Some((mut session, call)) = call.checked(client, problem, 0.0)? else {
        return Ok(Launches::default());
    };
    let needs = train_backward_needs(
        usize::from(call.epilogue.residual.is_some()),
        call.given.weights.is_some(),
        call.given.beta.is_some(),
        call.written_apart(),
    );
    let (cut, route) = session.route(needs)?;
    let pass = Pass::new(&session, call);
    let sweeps = call.out.input.is_some() || call.out.residual.is_some();
    match route {
        Route::Whole => pass.gradients(&mut session, cut, Source::Tensor, None),
        // The sums alone.
        _ if !sweeps => {
            let partials = pass.sums_partial(&mut session, cut);
            pass.sums_finish(&mut session, cut.splits(), &partials, None);
        }
        Route::Few => {
            let partials = pass.sums_partial(&mut session, cut);
            let sweep = Cut::element_wise(&problem, &session.device);
            let partials = Some((&partials, cut.splits()));
            pass.gradients(&mut session, sweep, Source::Splits, partials);
        }
        Route::Many => {
            let partials = pass.sums_partial(&mut session, cut);
            let prepared = session.scratch(6);
            pass.sums_finish(&mut session, cut.splits(), &partials, Some(&prepared));
            let sweep = Cut::element_wise(&problem, &session.device);
            pass.with_prepared(&prepared)
                .gradients(&mut session, sweep, Source::Parameters, None);
        }
    }
    Ok(session.launches)
}

/// The gradients of [`normalize`](crate::normalize), for which the statistics are constants: none goes through them.
///
/// With weights, x is taken for the mean wherever it is not finite.
///
/// One launch where a channel is one cube's or where gamma's and beta's gradients are not wanted, else two.
#[allow(clippy::too_many_arguments)]
pub fn normalize_backward(
    client: &Client,
    problem: Problem,
    x: &Handle,
    weights: Option<Weights<'_>>,
    dy: &Handle,
    affine: Affine<'_>,
    center: Center<'_>,
    epsilon: f64,
    epilogue: Epilogue<'_>,
    out: Gradients<'_>,
) -> Result<Launches, Error> {
    let call = Call {
        x,
        dy,
        given: Given::new(center, affine, weights),
        epilogue,
        out,
    };
    let Some((mut session, call)) = call.checked(client, problem, epsilon)? else {
        return Ok(Launches::default());
    };
    let tensors = usize::from(call.epilogue.residual.is_some()) + call.written_apart();
    let shift = call.given.beta.is_some();
    let needs = normalize_backward_needs(tensors, call.given.buffers(), shift);
    let (cut, route) = session.route(needs)?;
    let pass = Pass::new(&session, call);
    if call.out.gamma.is_none() && call.out.beta.is_none() {
        let sweep = Cut::element_wise(&problem, &session.device);
        pass.gradients(&mut session, sweep, Source::Parameters, None);
    } else if route == Route::Whole {
        pass.gradients(&mut session, cut, Source::Tensor, None);
    } else {
        let partials = pass.sums_partial(&mut session, cut);
        pass.sums_finish(&mut session, cut.splits(), &partials, None);
    }
    Ok(session.launches)
}

/// What a backward starts from, and what it is to write.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub x: &'a Handle,
    pub dy: &'a Handle,
    pub given: Given<'a>,
    pub epilogue: Epilogue<'a>,
    pub out: Gradients<'a>,
}

impl<'a> Call<'a> {
    /// Checks everything; nothing where there is nothing to do. What the activation does not ask for is not read.
    fn checked<'c>(
        mut self,
        client: &'c Client,
        problem: Problem,
        epsilon: f64,
    ) -> Result<Option<(Session<'c>, Self)>, Error> {
        let values = Values {
            activation: self.epilogue.activation,
            epsilon,
            ..Values::default()
        };
        let session = Session::new(client, problem, values)?;
        check_number("epsilon", epsilon)?;
        session.expect_tensors([
            ("x", Some(self.x)),
            ("output_grad", Some(self.dy)),
            ("residual", self.epilogue.residual),
            ("x_grad", self.out.input.and_then(|target| target.apart())),
            ("residual_grad", self.out.residual),
        ])?;
        session.expect_channels(
            1,
            [("gamma_grad", self.out.gamma), ("beta_grad", self.out.beta)],
        )?;
        self.given.expect(&session)?;
        if !self.epilogue.activation.shape().any() {
            self.epilogue.residual = None;
            self.given.beta = None;
        }
        let idle = problem.layout.is_empty() || self.out.is_empty();
        Ok((!idle).then_some((session, self)))
    }

    /// Tensors that are written to memory of their own.
    fn written_apart(&self) -> usize {
        let input = self.out.input.and_then(|target| target.apart());
        [input, self.out.residual].iter().flatten().count()
    }

    /// The compile-time part of a kernel.
    pub fn blueprint(&self, cut: &Cut, source: Source) -> GradientBlueprint {
        let shape = match source {
            Source::Tensor => cut.shape,
            Source::Splits | Source::Parameters => cut.shape.element_wise(),
        };
        GradientBlueprint {
            element: element_blueprint(
                shape,
                self.given.parameters,
                self.given.weights,
                self.epilogue,
            ),
            source,
            input: self.out.input.is_some(),
            residual: self.out.residual.is_some(),
        }
    }
}
