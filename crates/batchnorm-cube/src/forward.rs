//! The forward operations that reduce: training, and the statistics alone.

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::args::{Affine, Epilogue, Running, TrainOutputs, check_number};
use crate::blueprint::{Parameters, Source, TrainBlueprint};
use crate::cost::Launches;
use crate::kernels::{forward, moments as kernels};
use crate::launch::{Buffers, Session, Values};
use crate::normalize::{Given, element_blueprint, normalize_with};
use crate::strategy::Cut;
use crate::support::{MOMENTS_NEEDS, Route, train_needs};
use crate::{Error, Problem};

/// Normalizes by the statistics of the batch: `y = act((x - mean) * inv_std * gamma + beta + residual)`.
///
/// One launch where a channel is one cube's, two where a few share it, else three. Of an empty tensor nothing is written and nothing
/// launched.
#[allow(clippy::too_many_arguments)]
pub fn train(
    client: &Client,
    problem: Problem,
    x: &Handle,
    affine: Affine<'_>,
    running: Option<Running<'_>>,
    epsilon: f64,
    epilogue: Epilogue<'_>,
    out: TrainOutputs<'_>,
) -> Result<Launches, Error> {
    let values = Values {
        activation: epilogue.activation,
        epsilon,
        keep: running.map_or(0.0, |r| r.keep),
        add_mean: running.map_or(0.0, |r| r.add_mean),
        add_variance: running.map_or(0.0, |r| r.add_variance),
    };
    let mut session = Session::new(client, problem, values)?;
    check_number("epsilon", epsilon)?;
    running.map_or(Ok(()), |running| running.validate())?;
    session.expect_tensors([
        ("x", Some(x)),
        ("residual", epilogue.residual),
        ("y", out.y.apart()),
    ])?;
    session.expect_channels(
        1,
        [
            ("gamma", Some(affine.gamma)),
            ("beta", Some(affine.beta)),
            ("running_mean", running.map(|r| r.mean)),
            ("running_var", running.map(|r| r.variance)),
            ("new_running_mean", running.map(|r| r.new_mean)),
            ("new_running_var", running.map(|r| r.new_variance)),
        ],
    )?;
    session.expect_channels(4, [("statistics", Some(out.statistics))])?;
    if problem.layout.is_empty() {
        return Ok(session.launches);
    }

    let tensors = [epilogue.residual, out.y.apart()].iter().flatten().count();
    let (cut, route) = session.route(train_needs(tensors, running.is_some()))?;
    let step = Step {
        x,
        affine,
        running,
        epilogue,
        out,
    };
    match route {
        Route::Whole => step.train(&mut session, cut, None),
        Route::Few => {
            let partials = moments_partial(&mut session, cut, x);
            let sweep = Cut::element_wise(&problem, &session.device);
            step.train(&mut session, sweep, Some((&partials, cut.splits())));
        }
        Route::Many => {
            let partials = moments_partial(&mut session, cut, x);
            finish(
                &mut session,
                cut.splits(),
                &partials,
                out.statistics,
                Some(running),
            );
            let given = Given {
                center: out.statistics,
                variance: None,
                gamma: affine.gamma,
                beta: Some(affine.beta),
                parameters: Parameters::Batch,
            };
            normalize_with(&mut session, x, given, epilogue, out.y);
        }
    }
    Ok(session.launches)
}

/// The statistics of every channel: `center`, `[3][channels]`, gets the mean, what rounding took from it, and the biased variance.
///
/// One launch where a channel is one cube's, else two.
pub fn moments(
    client: &Client,
    problem: Problem,
    x: &Handle,
    center: &Handle,
) -> Result<Launches, Error> {
    let mut session = Session::new(client, problem, Values::default())?;
    session.expect_tensors([("x", Some(x))])?;
    session.expect_channels(3, [("center", Some(center))])?;
    if problem.layout.is_empty() {
        return Ok(session.launches);
    }
    let (cut, route) = session.route(MOMENTS_NEEDS)?;
    if route != Route::Whole {
        let partials = moments_partial(&mut session, cut, x);
        finish(&mut session, cut.splits(), &partials, center, None);
        return Ok(session.launches);
    }
    let mut buffers = Buffers::default();
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked for; see `Walk`.
    unsafe {
        kernels::moments_whole::launch_unchecked(
            client,
            session.grid(&cut),
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            buffers.bind(x, cut.span),
            buffers.bind(center, 3 * cut.channels),
            cut.geometry(),
            session.numbers(),
            cut.shape,
            session.types(&cut),
        );
    }
    session.record("moments_whole", (1, 0), (0, 3));
    Ok(session.launches)
}

/// The moments of the splits, in a scratch buffer.
fn moments_partial(session: &mut Session<'_>, cut: Cut, x: &Handle) -> Handle {
    let rows = 4 * cut.splits();
    let partials = session.scratch(rows);
    let mut buffers = Buffers::default();
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
    unsafe {
        kernels::moments_partial::launch_unchecked(
            session.client,
            session.grid(&cut),
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            buffers.bind(x, cut.span),
            buffers.bind(&partials, rows * cut.channels),
            cut.geometry(),
            session.numbers(),
            cut.shape,
            session.types(&cut),
        );
    }
    session.record("moments_partial", (1, 0), (0, rows));
    partials
}

/// The statistics from those of the splits: `training` ones, with or without running ones, or the center alone.
fn finish(
    session: &mut Session<'_>,
    splits: usize,
    partials: &Handle,
    statistics: &Handle,
    training: Option<Option<Running<'_>>>,
) {
    let cut = Cut::finish(splits, session.problem.layout.channels, &session.device);
    let channels = cut.channels;
    let rows = if training.is_some() { 4 } else { 3 };
    let running = training.flatten();
    let mut buffers = Buffers::default();
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
    unsafe {
        forward::finish::launch_unchecked(
            session.client,
            session.grid(&cut),
            cut.cube_dim(),
            cut.vector,
            buffers.bind(partials, 4 * splits * channels),
            buffers.bind_or_alias(running.map(|r| r.mean), channels, 0),
            buffers.bind_or_alias(running.map(|r| r.variance), channels, 0),
            buffers.bind(statistics, rows * channels),
            buffers.bind_or_alias(running.map(|r| r.new_mean), channels, 0),
            buffers.bind_or_alias(running.map(|r| r.new_variance), channels, 0),
            cut.geometry(),
            session.numbers(),
            training.is_some(),
            running.is_some(),
            cut.shape,
            session.arithmetic(),
        );
    }
    let updated = 2 * usize::from(running.is_some());
    session.record("finish", (0, 4 * splits + updated), (0, rows + updated));
}

/// A checked training step.
#[derive(Clone, Copy)]
struct Step<'a> {
    x: &'a Handle,
    affine: Affine<'a>,
    running: Option<Running<'a>>,
    epilogue: Epilogue<'a>,
    out: TrainOutputs<'a>,
}

impl Step<'_> {
    /// The kernel that writes everything, from the results of the splits or from the tensor.
    fn train(self, session: &mut Session<'_>, cut: Cut, partials: Option<(&Handle, usize)>) {
        let Self {
            x,
            affine,
            running,
            epilogue,
            out,
        } = self;
        let (len, channels) = (cut.span, cut.channels);
        let splits = partials.map_or(0, |(_, splits)| splits);
        let (shape, source) = match partials {
            None => (cut.shape, Source::Tensor),
            Some(_) => (cut.shape.element_wise(), Source::Splits),
        };
        let blueprint = TrainBlueprint {
            element: element_blueprint(shape, Parameters::Batch, epilogue),
            source,
            update: running.is_some(),
        };
        let mut buffers = Buffers::default();
        let x = buffers.bind(x, len);
        let residual = buffers.bind_or_alias(epilogue.residual, len, 0);
        let y = buffers.bind_or_alias(out.y.apart(), len, 0);
        let gamma = buffers.bind(affine.gamma, channels);
        // What is not given is not used either: an alias of gamma.
        let same = buffers.bound() - 1;
        // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
        unsafe {
            forward::train::launch_unchecked(
                session.client,
                session.grid(&cut),
                cut.cube_dim(),
                cut.stored_vector(),
                cut.vector,
                cut.parameter_vector(),
                x,
                residual,
                y,
                gamma,
                buffers.bind(affine.beta, channels),
                buffers.bind_or_alias(partials.map(|p| p.0), 4 * splits * channels, same),
                buffers.bind_or_alias(running.map(|r| r.mean), channels, same),
                buffers.bind_or_alias(running.map(|r| r.variance), channels, same),
                buffers.bind(out.statistics, 4 * channels),
                buffers.bind_or_alias(running.map(|r| r.new_mean), channels, same),
                buffers.bind_or_alias(running.map(|r| r.new_variance), channels, same),
                cut.geometry(),
                session.numbers(),
                splits,
                blueprint,
                session.types(&cut),
            );
        }
        let sweeps = 1 + usize::from(source == Source::Tensor);
        let tensors = sweeps + usize::from(epilogue.residual.is_some());
        let updated = 2 * usize::from(running.is_some());
        session.record(
            "train",
            (tensors, 2 + 4 * splits + updated),
            (1, 4 + updated),
        );
    }
}
