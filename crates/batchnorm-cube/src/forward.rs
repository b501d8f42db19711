//! The forward operations that reduce: training, and the statistics alone.

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::args::{Affine, Epilogue, Running, TrainOutputs, Weights, check_number};
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
/// With weights of positions `w` they are `mean = sum(w x) / sum(w)` and `variance = sum(w (x - mean)^2) / sum(w)`, and `statistics` gets five
/// rows. All positions are normalized, those of weight 0 too; where x is not finite there, the mean is taken for it. A channel without any weight
/// has mean 0 and variance 1, which enter the running statistics like all others.
///
/// One launch where a channel is one cube's, two where a few share it, else three; weights are read once. Of an empty tensor nothing is written
/// and nothing launched.
#[allow(clippy::too_many_arguments)]
pub fn train(
    client: &Client,
    problem: Problem,
    x: &Handle,
    weights: Option<Weights<'_>>,
    affine: Affine<'_>,
    running: Option<Running<'_>>,
    epsilon: f64,
    epilogue: Epilogue<'_>,
    out: TrainOutputs<'_>,
) -> Result<Launches, Error> {
    let step = Step {
        x,
        weights,
        affine,
        running,
        epilogue,
        out,
    };
    step.run(client, problem, epsilon)
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
        let partials = moments_partial(&mut session, cut, x, None);
        finish(&mut session, cut.splits(), &partials, (center, 3), None);
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
            buffers.bind_weights(None, &cut, 1),
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
fn moments_partial(
    session: &mut Session<'_>,
    cut: Cut,
    x: &Handle,
    weights: Option<Weights<'_>>,
) -> Handle {
    let rows = 4 * cut.splits();
    let partials = session.scratch(rows);
    let weighting = Weights::weighting(weights);
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
            cut.weight_vector(weighting),
            buffers.bind(x, cut.span),
            buffers.bind(&partials, rows * cut.channels),
            buffers.bind_weights(weights, &cut, 1),
            cut.geometry(),
            session.numbers(),
            weighting,
            cut.shape,
            session.types(&cut),
        );
    }
    session.record("moments_partial", (1, 0), (0, rows));
    session.record_weights(weights);
    partials
}

/// The statistics from those of the splits: 3 rows of a center, 4 of a training forward or 5 of a weighted one, and the running ones.
fn finish(
    session: &mut Session<'_>,
    splits: usize,
    partials: &Handle,
    (statistics, rows): (&Handle, usize),
    running: Option<Running<'_>>,
) {
    let cut = Cut::finish(splits, session.problem.layout.channels, &session.device);
    let channels = cut.channels;
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
            rows > 3,
            rows > 4,
            running.is_some(),
            cut.shape,
            session.arithmetic(),
        );
    }
    let updated = 2 * usize::from(running.is_some());
    session.record("finish", (0, 4 * splits + updated), (0, rows + updated));
}

/// A training step.
#[derive(Clone, Copy)]
struct Step<'a> {
    x: &'a Handle,
    weights: Option<Weights<'a>>,
    affine: Affine<'a>,
    running: Option<Running<'a>>,
    epilogue: Epilogue<'a>,
    out: TrainOutputs<'a>,
}

impl Step<'_> {
    /// Checks everything and launches.
    fn run(self, client: &Client, problem: Problem, epsilon: f64) -> Result<Launches, Error> {
        let Self {
            x,
            weights,
            affine,
            running,
            epilogue,
            out,
        } = self;
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
        session.expect_weights(weights)?;
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
        let given = Given::of_batch(out.statistics, affine, weights);
        let rows = given.rows();
        session.expect_channels(rows as u64, [("statistics", Some(out.statistics))])?;
        if problem.layout.is_empty() {
            return Ok(session.launches);
        }

        let tensors = [epilogue.residual, out.y.apart()].iter().flatten().count();
        let needs = train_needs(tensors, weights.is_some(), running.is_some());
        let (cut, route) = session.route(needs)?;
        match route {
            Route::Whole => self.train(&mut session, cut, None),
            Route::Few => {
                let partials = moments_partial(&mut session, cut, x, weights);
                let sweep = Cut::element_wise(&problem, &session.device);
                self.train(&mut session, sweep, Some((&partials, cut.splits())));
            }
            Route::Many => {
                let partials = moments_partial(&mut session, cut, x, weights);
                let statistics = (out.statistics, rows);
                finish(&mut session, cut.splits(), &partials, statistics, running);
                normalize_with(&mut session, x, given, epilogue, out.y);
            }
        }
        Ok(session.launches)
    }

    /// The kernel that writes everything, from the results of the splits or from the tensor.
    fn train(self, session: &mut Session<'_>, cut: Cut, partials: Option<(&Handle, usize)>) {
        let Self {
            x,
            weights,
            affine,
            running,
            epilogue,
            out,
        } = self;
        let rows = 4 + usize::from(weights.is_some());
        let (len, channels) = (cut.span, cut.channels);
        let splits = partials.map_or(0, |(_, splits)| splits);
        let (shape, source) = match partials {
            None => (cut.shape, Source::Tensor),
            Some(_) => (cut.shape.element_wise(), Source::Splits),
        };
        let blueprint = TrainBlueprint {
            element: element_blueprint(shape, Parameters::Batch, weights, epilogue),
            source,
            update: running.is_some(),
        };
        // Statistics of splits have the weights in them.
        let weights = weights.filter(|_| source == Source::Tensor);
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
                cut.weight_vector(blueprint.element.weighting),
                x,
                residual,
                y,
                gamma,
                buffers.bind(affine.beta, channels),
                buffers.bind_or_alias(partials.map(|p| p.0), 4 * splits * channels, same),
                buffers.bind_or_alias(running.map(|r| r.mean), channels, same),
                buffers.bind_or_alias(running.map(|r| r.variance), channels, same),
                buffers.bind(out.statistics, rows * channels),
                buffers.bind_or_alias(running.map(|r| r.new_mean), channels, same),
                buffers.bind_or_alias(running.map(|r| r.new_variance), channels, same),
                buffers.bind_weights(weights, &cut, same),
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
            (1, rows + updated),
        );
        session.record_weights(weights);
    }
}
