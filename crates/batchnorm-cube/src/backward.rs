//! The backward operations: of training, of normalization with given statistics, and the two parts of the former.

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::args::{Affine, Coefficients, Epilogue, Gradients, Target};
use crate::cost::Launches;
use crate::gradients::{gradients, input_grad_with};
use crate::launch::Session;
use crate::{Error, Problem};

/// The gradients of [`train`](crate::train). `saved` is what it wrote.
///
/// One launch where a channel is one cube's, else three (two where the input's gradient is not wanted). Of an empty tensor, or where nothing
/// is wanted, nothing is written and nothing launched.
#[allow(clippy::too_many_arguments)]
pub fn train_backward(
    client: &Client,
    problem: Problem,
    x: &Handle,
    dy: &Handle,
    affine: Affine<'_>,
    saved: &Handle,
    epilogue: Epilogue<'_>,
    out: Gradients<'_>,
) -> Result<Launches, Error> {
    let given = Given {
        x,
        dy,
        center: saved,
        affine: Some(affine),
        saved: true,
        epilogue,
    };
    given.gradients(client, problem, out)
}

/// The gradients of [`normalize`](crate::normalize), for which the mean is a constant.
///
/// One launch where a channel is one cube's, else two.
#[allow(clippy::too_many_arguments)]
pub fn normalize_backward(
    client: &Client,
    problem: Problem,
    x: &Handle,
    dy: &Handle,
    affine: Affine<'_>,
    mean: &Handle,
    epilogue: Epilogue<'_>,
    out: Gradients<'_>,
) -> Result<Launches, Error> {
    let given = Given {
        x,
        dy,
        center: mean,
        affine: Some(affine),
        saved: false,
        epilogue,
    };
    given.gradients(client, problem, out)
}

/// `sum dy` and `sum dy * (x - mean)` of every channel, `[channels]` each. One launch where a channel is one cube's, else two.
pub fn backward_sums(
    client: &Client,
    problem: Problem,
    x: &Handle,
    dy: &Handle,
    mean: &Handle,
    sum: &Handle,
    centred_sum: &Handle,
) -> Result<Launches, Error> {
    let given = Given {
        x,
        dy,
        center: mean,
        affine: None,
        saved: false,
        epilogue: Epilogue::default(),
    };
    let out = Gradients {
        scale: Some(centred_sum),
        shift: Some(sum),
        ..Gradients::default()
    };
    given.gradients(client, problem, out)
}

/// `dx = a * dy + b * (x - mean) + c`, with one `a`, `b` and `c` per channel. One launch.
pub fn input_grad(
    client: &Client,
    problem: Problem,
    x: &Handle,
    dy: &Handle,
    mean: &Handle,
    coefficients: Coefficients<'_>,
    dx: Target<'_>,
) -> Result<Launches, Error> {
    let given = Given {
        x,
        dy,
        center: mean,
        affine: None,
        saved: false,
        epilogue: Epilogue::default(),
    };
    let out = Gradients {
        input: Some(dx),
        ..Gradients::default()
    };
    let mut session = given.session(client, problem, &out)?;
    let Coefficients { a, b, c } = coefficients;
    session.expect_channels(1, [("a", Some(a)), ("b", Some(b)), ("c", Some(c))])?;
    if !problem.layout.is_empty() {
        input_grad_with(&mut session, given, [a, b, c], dx)?;
    }
    Ok(session.launches)
}

/// What a backward starts from.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub x: &'a Handle,
    pub dy: &'a Handle,
    /// The mean, or `saved`.
    pub center: &'a Handle,
    pub affine: Option<Affine<'a>>,
    pub saved: bool,
    pub epilogue: Epilogue<'a>,
}

impl Given<'_> {
    fn session<'c>(
        &self,
        client: &'c Client,
        problem: Problem,
        out: &Gradients<'_>,
    ) -> Result<Session<'c>, Error> {
        let session = Session::new(client, problem)?;
        self.epilogue.activation.validate()?;
        session.expect_tensors([
            ("x", Some(self.x)),
            ("output_grad", Some(self.dy)),
            ("residual", self.epilogue.residual),
            ("x_grad", out.input.and_then(|target| target.apart())),
            ("residual_grad", out.residual),
        ])?;
        session.expect_channels(
            1,
            [
                ("scale", self.affine.map(|affine| affine.scale)),
                ("shift", self.affine.map(|affine| affine.shift)),
                ("scale_grad", out.scale),
                ("shift_grad", out.shift),
            ],
        )?;
        let name = if self.saved { "saved" } else { "mean" };
        session.expect_channels(self.center_rows() as u64, [(name, Some(self.center))])?;
        Ok(session)
    }

    /// Checks everything, then launches what `out` wants.
    fn gradients(
        self,
        client: &Client,
        problem: Problem,
        out: Gradients<'_>,
    ) -> Result<Launches, Error> {
        let mut session = self.session(client, problem, &out)?;
        if !problem.layout.is_empty() && !out.is_empty() {
            gradients(&mut session, self, out)?;
        }
        Ok(session.launches)
    }

    pub fn center_rows(&self) -> usize {
        match self.saved {
            true => 3,
            false => 1,
        }
    }

    /// The shift, where the activation's argument is recomputed.
    pub fn shift(&self) -> Option<&Handle> {
        let needed = self.epilogue.activation.shape().any();
        self.affine.filter(|_| needed).map(|affine| affine.shift)
    }

    pub fn residual_reads(&self) -> usize {
        usize::from(self.epilogue.residual.is_some())
    }
}
