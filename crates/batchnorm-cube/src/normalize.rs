//! Normalization with given statistics, and any other affine map of channels: one launch each.

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::args::{Affine, Center, Epilogue, Target, Weights, check_number};
use crate::blueprint::{CubeShape, ElementBlueprint, Parameters};
use crate::cost::Launches;
use crate::kernels::forward;
use crate::launch::{Buffers, Session, Values};
use crate::strategy::Cut;
use crate::support::normalize_needs;
use crate::{Error, Problem};

/// Normalizes with given statistics: `y = act((x - mean) / sqrt(variance + epsilon) * gamma + beta + residual)`. One launch.
///
/// Where a position has no weight and x is not finite, the mean is taken for it. Otherwise weights change nothing.
#[allow(clippy::too_many_arguments)]
pub fn normalize(
    client: &Client,
    problem: Problem,
    x: &Handle,
    weights: Option<Weights<'_>>,
    center: Center<'_>,
    affine: Affine<'_>,
    epsilon: f64,
    epilogue: Epilogue<'_>,
    y: Target<'_>,
) -> Result<Launches, Error> {
    let given = Given::new(center, affine, weights);
    apply(client, problem, x, given, epsilon, epilogue, y)
}

/// `y = (x - mean) * scale + shift`, with one `mean`, `scale` and `shift` per channel. One launch.
pub fn affine(
    client: &Client,
    problem: Problem,
    x: &Handle,
    mean: &Handle,
    scale: &Handle,
    shift: &Handle,
    y: Target<'_>,
) -> Result<Launches, Error> {
    let given = Given {
        center: mean,
        variance: None,
        gamma: scale,
        beta: Some(shift),
        weights: None,
        parameters: Parameters::Affine,
    };
    apply(client, problem, x, given, 0.0, Epilogue::default(), y)
}

fn apply(
    client: &Client,
    problem: Problem,
    x: &Handle,
    given: Given<'_>,
    epsilon: f64,
    epilogue: Epilogue<'_>,
    y: Target<'_>,
) -> Result<Launches, Error> {
    let values = Values {
        activation: epilogue.activation,
        epsilon,
        ..Values::default()
    };
    let mut session = Session::new(client, problem, values)?;
    check_number("epsilon", epsilon)?;
    session.expect_tensors([
        ("x", Some(x)),
        ("residual", epilogue.residual),
        ("y", y.apart()),
    ])?;
    given.expect(&session)?;
    if problem.layout.is_empty() {
        return Ok(session.launches);
    }
    let tensors = [epilogue.residual, y.apart()].iter().flatten().count();
    let weights = given.weights.is_some();
    session.expect_bindings(normalize_needs(tensors, weights, given.buffers()))?;
    normalize_with(&mut session, x, given, epilogue, y);
    Ok(session.launches)
}

/// Statistics and parameters, as a kernel takes them; `parameters` tells what they are.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub center: &'a Handle,
    pub variance: Option<&'a Handle>,
    pub gamma: &'a Handle,
    /// None where it is not read.
    pub beta: Option<&'a Handle>,
    /// Those of the positions, which the statistics were taken with if they are of the batch.
    pub weights: Option<Weights<'a>>,
    pub parameters: Parameters,
}

impl<'a> Given<'a> {
    /// The statistics of a training forward.
    pub fn of_batch(
        statistics: &'a Handle,
        affine: Affine<'a>,
        weights: Option<Weights<'a>>,
    ) -> Self {
        Self {
            center: statistics,
            variance: None,
            gamma: affine.gamma,
            beta: Some(affine.beta),
            weights,
            parameters: match weights {
                None => Parameters::Batch,
                Some(_) => Parameters::Weighted,
            },
        }
    }

    /// Given statistics.
    pub fn new(center: Center<'a>, affine: Affine<'a>, weights: Option<Weights<'a>>) -> Self {
        let (center, variance, parameters) = match center {
            Center::Packed(center) => (center, None, Parameters::Packed),
            Center::Apart { mean, variance } => (mean, Some(variance), Parameters::Apart),
        };
        Self {
            center,
            variance,
            gamma: affine.gamma,
            beta: Some(affine.beta),
            weights,
            parameters,
        }
    }

    /// Checks the buffers.
    pub fn expect(&self, session: &Session<'_>) -> Result<(), Error> {
        let names = match self.parameters {
            Parameters::Affine => ["mean", "scale", "shift"],
            Parameters::Apart => ["mean", "gamma", "beta"],
            Parameters::Packed => ["center", "gamma", "beta"],
            Parameters::Batch | Parameters::Weighted | Parameters::Prepared => {
                ["statistics", "gamma", "beta"]
            }
        };
        session.expect_weights(self.weights)?;
        session.expect_channels(self.rows() as u64, [(names[0], Some(self.center))])?;
        session.expect_channels(
            1,
            [
                ("variance", self.variance),
                (names[1], Some(self.gamma)),
                (names[2], self.beta),
            ],
        )
    }

    /// Rows of the center.
    pub fn rows(&self) -> usize {
        match self.parameters {
            Parameters::Prepared => 6,
            Parameters::Weighted => 5,
            Parameters::Batch => 4,
            Parameters::Packed => 3,
            Parameters::Apart | Parameters::Affine => 1,
        }
    }

    /// Buffers of the statistics.
    pub fn buffers(&self) -> usize {
        1 + usize::from(self.variance.is_some())
    }

    /// Vectors of one value per channel that a kernel reads.
    pub fn vectors(&self) -> usize {
        self.rows() + usize::from(self.variance.is_some()) + 1 + usize::from(self.beta.is_some())
    }

    /// Center, variance, gamma and beta. What is not given is not used either: an alias of the center.
    pub fn bind(&self, buffers: &mut Buffers, channels: usize) -> [BufferArg; 4] {
        let center = buffers.bind(self.center, self.rows() * channels);
        let same = buffers.bound() - 1;
        // Prepared rows hold gamma too.
        let gamma = (self.parameters != Parameters::Prepared).then_some(self.gamma);
        [
            center,
            buffers.bind_or_alias(self.variance, channels, same),
            buffers.bind_or_alias(gamma, channels, same),
            buffers.bind_or_alias(self.beta, channels, same),
        ]
    }
}

/// The compile-time part of what happens to an element.
pub(crate) fn element_blueprint(
    shape: CubeShape,
    parameters: Parameters,
    weights: Option<Weights<'_>>,
    epilogue: Epilogue<'_>,
) -> ElementBlueprint {
    ElementBlueprint {
        shape,
        parameters,
        pieces: epilogue.activation.shape(),
        residual: epilogue.residual.is_some(),
        weighting: Weights::weighting(weights),
    }
}

/// Launches the kernel.
pub(crate) fn normalize_with(
    session: &mut Session<'_>,
    x: &Handle,
    given: Given<'_>,
    epilogue: Epilogue<'_>,
    y: Target<'_>,
) {
    let cut = Cut::element_wise(&session.problem, &session.device);
    let len = cut.span;
    let mut buffers = Buffers::default();
    let x = buffers.bind(x, len);
    let residual = buffers.bind_or_alias(epilogue.residual, len, 0);
    let y = buffers.bind_or_alias(y.apart(), len, 0);
    // What is not given is not used either: an alias of the center.
    let same = buffers.bound();
    let [center, variance, gamma, beta] = given.bind(&mut buffers, cut.channels);
    let blueprint = element_blueprint(
        cut.shape.element_wise(),
        given.parameters,
        given.weights,
        epilogue,
    );
    let weights = given.weights.filter(|_| blueprint.weighs());
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked for; see `Walk`.
    unsafe {
        forward::normalize::launch_unchecked(
            session.client,
            session.grid(&cut),
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            cut.weight_vector(blueprint.weighting),
            x,
            residual,
            y,
            center,
            variance,
            gamma,
            beta,
            buffers.bind_weights(weights, &cut, same),
            cut.geometry(),
            session.numbers(),
            blueprint,
            session.types(&cut),
        );
    }
    let tensors = 1 + usize::from(epilogue.residual.is_some());
    session.record("normalize", (tensors, given.vectors()), (1, 0));
    session.record_weights(weights);
}
