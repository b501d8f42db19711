//! The forward operations: training, normalization with given statistics, and moments.

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::args::{Affine, Epilogue, Running, Target, TrainOutputs, TrainParams};
use crate::blueprint::ElementBlueprint;
use crate::cost::Launches;
use crate::kernels::{forward, moments};
use crate::launch::{Buffers, Session};
use crate::strategy::Cut;
use crate::{Error, Problem};

/// Normalizes by the statistics of the batch: `y = act((x - mean) * inv_std * gamma + beta + residual)`.
///
/// One launch where a channel is one cube's, else three. Of an empty tensor nothing is written and nothing launched.
#[allow(clippy::too_many_arguments)]
pub fn train(
    client: &Client,
    problem: Problem,
    x: &Handle,
    affine: Affine<'_>,
    running: Option<Running<'_>>,
    params: TrainParams,
    epilogue: Epilogue<'_>,
    out: TrainOutputs<'_>,
) -> Result<Launches, Error> {
    let mut session = Session::new(client, problem)?;
    epilogue.activation.validate()?;
    params.validate()?;
    session.expect_tensors([
        ("x", Some(x)),
        ("residual", epilogue.residual),
        ("y", out.y.apart()),
    ])?;
    session.expect_channels(
        1,
        [
            ("gamma", Some(affine.scale)),
            ("beta", Some(affine.shift)),
            ("running_mean", running.map(|r| r.mean)),
            ("running_var", running.map(|r| r.variance)),
            ("new_running_mean", running.map(|r| r.new_mean)),
            ("new_running_var", running.map(|r| r.new_variance)),
            ("mean", out.mean),
            ("variance", Some(out.variance)),
        ],
    )?;
    session.expect_channels(3, [("saved", Some(out.saved))])?;
    if problem.layout.is_empty() {
        return Ok(session.launches);
    }

    let tensors = [epilogue.residual, out.y.apart()];
    let tensors = tensors.iter().flatten().count();
    let vectors = usize::from(out.mean.is_some()) + 4 * usize::from(running.is_some());
    let cut = Cut::reduction(&problem, &session.device);
    if cut.splits() == 1 && session.expect_bindings(5 + tensors + vectors).is_ok() {
        train_whole(&mut session, cut, x, affine, running, params, epilogue, out)?;
    } else {
        session.expect_bindings((3 + vectors).max(4 + tensors))?;
        let partials = moments_partial(&mut session, cut, x)?;
        train_finish(&mut session, cut.splits(), &partials, running, params, out)?;
        normalize_with(&mut session, x, out.saved, affine, true, epilogue, out.y)?;
    }
    Ok(session.launches)
}

/// Normalizes with given statistics: `y = act((x - mean) * scale + shift + residual)`. One launch.
pub fn normalize(
    client: &Client,
    problem: Problem,
    x: &Handle,
    mean: &Handle,
    affine: Affine<'_>,
    epilogue: Epilogue<'_>,
    y: Target<'_>,
) -> Result<Launches, Error> {
    let mut session = Session::new(client, problem)?;
    epilogue.activation.validate()?;
    session.expect_tensors([
        ("x", Some(x)),
        ("residual", epilogue.residual),
        ("y", y.apart()),
    ])?;
    session.expect_channels(
        1,
        [
            ("mean", Some(mean)),
            ("scale", Some(affine.scale)),
            ("shift", Some(affine.shift)),
        ],
    )?;
    if !problem.layout.is_empty() {
        normalize_with(&mut session, x, mean, affine, false, epilogue, y)?;
    }
    Ok(session.launches)
}

/// Mean and sum of squared deviations of every channel, `[channels]` each. Two launches.
///
/// The mean is rounded once; the sum is around the mean before rounding.
pub fn moments(
    client: &Client,
    problem: Problem,
    x: &Handle,
    mean: &Handle,
    m2: &Handle,
) -> Result<Launches, Error> {
    let mut session = Session::new(client, problem)?;
    session.expect_tensors([("x", Some(x))])?;
    session.expect_channels(1, [("mean", Some(mean)), ("m2", Some(m2))])?;
    if problem.layout.is_empty() {
        return Ok(session.launches);
    }

    let cut = Cut::reduction(&problem, &session.device);
    let splits = cut.splits();
    let partials = moments_partial(&mut session, cut, x)?;

    let channels = problem.layout.channels;
    let cut = Cut::finish(splits, channels, &session.device);
    let mut buffers = Buffers::default();
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
    unsafe {
        moments::moments_finish::launch_unchecked(
            client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.vector,
            buffers.bind(&partials, (3 * splits + 1) * cut.channels),
            buffers.bind(mean, cut.channels),
            buffers.bind(m2, cut.channels),
            cut.geometry(),
            cut.shape,
            session.arithmetic(),
        );
    }
    session.record("moments_finish", (0, 3 * splits + 1), (0, 2));
    Ok(session.launches)
}

/// The moments of the splits, in a scratch buffer.
fn moments_partial(session: &mut Session<'_>, cut: Cut, x: &Handle) -> Result<Handle, Error> {
    let splits = cut.splits();
    let partials = session.scratch(3 * splits + 1);
    let mut buffers = Buffers::default();
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
    unsafe {
        moments::moments_partial::launch_unchecked(
            session.client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            buffers.bind(x, cut.tensor_len()),
            buffers.bind(&partials, (3 * splits + 1) * cut.channels),
            cut.geometry(),
            splits,
            cut.shape,
            session.types(&cut),
        );
    }
    session.record("moments_partial", (1, 0), (0, 3 * splits + 1));
    Ok(partials)
}

fn train_finish(
    session: &mut Session<'_>,
    splits: usize,
    partials: &Handle,
    running: Option<Running<'_>>,
    params: TrainParams,
    out: TrainOutputs<'_>,
) -> Result<(), Error> {
    let cut = Cut::finish(splits, session.problem.layout.channels, &session.device);
    let channels = cut.channels;
    let mut buffers = Buffers::default();
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
    unsafe {
        forward::train_finish::launch_unchecked(
            session.client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.vector,
            buffers.bind(partials, (3 * splits + 1) * channels),
            buffers.bind_or_alias(running.map(|r| r.mean), channels, 0),
            buffers.bind_or_alias(running.map(|r| r.variance), channels, 0),
            buffers.bind_or_alias(out.mean, channels, 0),
            buffers.bind(out.variance, channels),
            buffers.bind(out.saved, 3 * channels),
            buffers.bind_or_alias(running.map(|r| r.new_mean), channels, 0),
            buffers.bind_or_alias(running.map(|r| r.new_variance), channels, 0),
            cut.geometry(),
            step(session, params),
            out.mean.is_some(),
            running.is_some(),
            cut.shape,
            session.arithmetic(),
        );
    }
    let (read, written) = statistics_traffic(running, out);
    session.record("train_finish", (0, 3 * splits + 1 + read), (0, written));
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn train_whole(
    session: &mut Session<'_>,
    cut: Cut,
    x: &Handle,
    affine: Affine<'_>,
    running: Option<Running<'_>>,
    params: TrainParams,
    epilogue: Epilogue<'_>,
    out: TrainOutputs<'_>,
) -> Result<(), Error> {
    let (len, channels) = (cut.tensor_len(), cut.channels);
    let mut buffers = Buffers::default();
    let x = buffers.bind(x, len);
    let residual = buffers.bind_or_alias(epilogue.residual, len, 0);
    let y = buffers.bind_or_alias(out.y.apart(), len, 0);
    let gamma = buffers.bind(affine.scale, channels);
    // What is not given is not used either: an alias of gamma.
    let same = buffers.bound() - 1;
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked for; see `Walk`.
    unsafe {
        forward::train_whole::launch_unchecked(
            session.client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            x,
            residual,
            y,
            gamma,
            buffers.bind(affine.shift, channels),
            buffers.bind_or_alias(running.map(|r| r.mean), channels, same),
            buffers.bind_or_alias(running.map(|r| r.variance), channels, same),
            buffers.bind_or_alias(out.mean, channels, same),
            buffers.bind(out.variance, channels),
            buffers.bind(out.saved, 3 * channels),
            buffers.bind_or_alias(running.map(|r| r.new_mean), channels, same),
            buffers.bind_or_alias(running.map(|r| r.new_variance), channels, same),
            cut.geometry(),
            session.numbers(epilogue.activation),
            step(session, params),
            out.mean.is_some(),
            running.is_some(),
            element_blueprint(&cut, true, epilogue),
            session.types(&cut),
        );
    }
    let residual = usize::from(epilogue.residual.is_some());
    let (read, written) = statistics_traffic(running, out);
    session.record("train_whole", (2 + residual, 2 + read), (1, written));
    Ok(())
}

fn normalize_with(
    session: &mut Session<'_>,
    x: &Handle,
    center: &Handle,
    affine: Affine<'_>,
    saved: bool,
    epilogue: Epilogue<'_>,
    y: Target<'_>,
) -> Result<(), Error> {
    let cut = Cut::element_wise(&session.problem, &session.device);
    let (len, channels) = (cut.tensor_len(), cut.channels);
    let rows = if saved { 3 } else { 1 };
    let mut buffers = Buffers::default();
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked for; see `Walk`.
    unsafe {
        forward::normalize::launch_unchecked(
            session.client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            buffers.bind(x, len),
            buffers.bind_or_alias(epilogue.residual, len, 0),
            buffers.bind_or_alias(y.apart(), len, 0),
            buffers.bind(center, rows * channels),
            buffers.bind(affine.scale, channels),
            buffers.bind(affine.shift, channels),
            cut.geometry(),
            session.numbers(epilogue.activation),
            element_blueprint(&cut, saved, epilogue),
            session.types(&cut),
        );
    }
    let residual = usize::from(epilogue.residual.is_some());
    session.record("normalize", (1 + residual, rows + 2), (1, 0));
    Ok(())
}

/// The comptime part of an element-wise kernel.
pub(crate) fn element_blueprint(
    cut: &Cut,
    saved: bool,
    epilogue: Epilogue<'_>,
) -> ElementBlueprint {
    ElementBlueprint {
        shape: cut.shape,
        saved,
        pieces: epilogue.activation.shape(),
        residual: epilogue.residual.is_some(),
    }
}

fn step(session: &Session<'_>, params: TrainParams) -> forward::StepLaunch {
    forward::StepLaunch::new(
        session.number(1.0),
        session.number(params.epsilon),
        session.number(params.factor),
        session.number(params.correction),
    )
}

/// Vectors of one value per channel that the finishing part reads and writes.
fn statistics_traffic(running: Option<Running<'_>>, out: TrainOutputs<'_>) -> (usize, usize) {
    let running = 2 * usize::from(running.is_some());
    (running, running + 4 + usize::from(out.mean.is_some()))
}
