//! The launches of the backward operations: which kernels run, with which buffers.

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::Error;
use crate::args::{Gradients, Target};
use crate::backward::Given;
use crate::blueprint::{EarlyGrad, SumsBlueprint};
use crate::forward::element_blueprint;
use crate::kernels::{backward, sums};
use crate::launch::{Buffers, Session};
use crate::strategy::Cut;

/// The sums, and what is wanted besides them.
pub(crate) fn gradients(
    session: &mut Session<'_>,
    given: Given<'_>,
    out: Gradients<'_>,
) -> Result<(), Error> {
    let cut = Cut::reduction(&session.problem, &session.device);
    let input = out.input.filter(|_| given.saved);
    // Sums that nobody asked for have to go somewhere as long as the input's gradient needs them.
    let scratch =
        [out.scale, out.shift].map(|wanted| wanted.cloned().unwrap_or_else(|| session.scratch(1)));
    let [scale_grad, shift_grad] = &scratch;

    // Buffers beyond x, the output gradient and the vectors per channel.
    let apart = out.input.and_then(|target| target.apart());
    let tensors = |list: &[Option<&Handle>]| list.iter().flatten().count();
    let most = 7 + tensors(&[given.epilogue.residual, apart, out.residual]);
    if cut.splits() == 1 && session.expect_bindings(most).is_ok() {
        return sums_whole(session, cut, given, out, scale_grad, shift_grad);
    }
    let late = input.and(apart);
    let early = if given.saved { None } else { apart };
    let shift = usize::from(given.shift().is_some());
    session
        .expect_bindings(5 + shift + tensors(&[given.epilogue.residual, early, out.residual]))?;
    if input.is_some() {
        session.expect_bindings(6 + shift + tensors(&[given.epilogue.residual, late]))?;
    }
    let partials = sums_partial(session, cut, given, out)?;
    if input.is_some() || out.scale.is_some() || out.shift.is_some() {
        sums_finish(
            session,
            cut.splits(),
            given,
            &partials,
            scale_grad,
            shift_grad,
        )?;
    }
    if let (Some(target), Some(affine)) = (input, given.affine) {
        input_grad_with(
            session,
            given,
            [affine.scale, scale_grad, shift_grad],
            target,
        )?;
    }
    Ok(())
}

/// The comptime part of a kernel that sums. The input's gradient does not wait for the sums where the statistics are given.
fn sums_blueprint(cut: &Cut, given: Given<'_>, out: Gradients<'_>) -> SumsBlueprint {
    SumsBlueprint {
        element: element_blueprint(cut, given.saved, given.epilogue),
        early: match out.input.is_some() && !given.saved {
            true => EarlyGrad::Scaled,
            false => EarlyGrad::None,
        },
        residual_grad: out.residual.is_some(),
    }
}

fn sums_whole(
    session: &mut Session<'_>,
    cut: Cut,
    given: Given<'_>,
    out: Gradients<'_>,
    scale_grad: &Handle,
    shift_grad: &Handle,
) -> Result<(), Error> {
    let channels = cut.channels;
    let target = out.input.and_then(|target| target.apart());
    let second_sweep = given.saved && out.input.is_some();
    let mut buffers = Buffers::default();
    let tensors = tensors(&mut buffers, &cut, given, target, out.residual);
    let [x, dy, residual, dx, dresidual] = tensors;
    let [center, scale, shift] = parameters(&mut buffers, &cut, given);
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
    unsafe {
        backward::sums_whole::launch_unchecked(
            session.client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            x,
            dy,
            residual,
            dx,
            dresidual,
            center,
            scale,
            shift,
            buffers.bind(shift_grad, channels),
            buffers.bind(scale_grad, channels),
            cut.geometry(),
            session.numbers(given.epilogue.activation),
            session.number(1.0 / session.problem.layout.samples_per_channel() as f64),
            second_sweep,
            sums_blueprint(&cut, given, out),
            session.types(&cut),
        );
    }
    let sweeps = 1 + usize::from(second_sweep);
    let read = sweeps * (2 + given.residual_reads());
    let written = usize::from(out.input.is_some()) + usize::from(out.residual.is_some());
    session.record("sums_whole", (read, given.center_rows() + 2), (written, 2));
    Ok(())
}

fn sums_partial(
    session: &mut Session<'_>,
    cut: Cut,
    given: Given<'_>,
    out: Gradients<'_>,
) -> Result<Handle, Error> {
    let splits = cut.splits();
    let partials = session.scratch(3 * splits + 1);
    let blueprint = sums_blueprint(&cut, given, out);
    let target = match blueprint.early {
        EarlyGrad::Scaled => out.input.and_then(|target| target.apart()),
        EarlyGrad::None => None,
    };
    let mut buffers = Buffers::default();
    let [x, dy, residual, dx, dresidual] = tensors(&mut buffers, &cut, given, target, out.residual);
    let [center, scale, shift] = parameters(&mut buffers, &cut, given);
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
    unsafe {
        sums::sums_partial::launch_unchecked(
            session.client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            x,
            dy,
            residual,
            dx,
            dresidual,
            center,
            scale,
            shift,
            buffers.bind(&partials, (3 * splits + 1) * cut.channels),
            cut.geometry(),
            session.numbers(given.epilogue.activation),
            splits,
            blueprint,
            session.types(&cut),
        );
    }
    let written =
        usize::from(blueprint.early == EarlyGrad::Scaled) + usize::from(out.residual.is_some());
    let read = (2 + given.residual_reads(), given.center_rows() + 2);
    session.record("sums_partial", read, (written, 3 * splits + 1));
    Ok(partials)
}

fn sums_finish(
    session: &mut Session<'_>,
    splits: usize,
    given: Given<'_>,
    partials: &Handle,
    scale_grad: &Handle,
    shift_grad: &Handle,
) -> Result<(), Error> {
    let cut = Cut::finish(splits, session.problem.layout.channels, &session.device);
    let mut buffers = Buffers::default();
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
    unsafe {
        sums::sums_finish::launch_unchecked(
            session.client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.vector,
            buffers.bind(partials, (3 * splits + 1) * cut.channels),
            buffers.bind(given.center, given.center_rows() * cut.channels),
            buffers.bind(shift_grad, cut.channels),
            buffers.bind(scale_grad, cut.channels),
            cut.geometry(),
            given.saved,
            cut.shape,
            session.arithmetic(),
        );
    }
    session.record("sums_finish", (0, 3 * splits + given.center_rows()), (0, 2));
    Ok(())
}

/// `vectors` are gamma, dgamma and dbeta with `saved`, else a, b and c.
pub(crate) fn input_grad_with(
    session: &mut Session<'_>,
    given: Given<'_>,
    vectors: [&Handle; 3],
    target: Target<'_>,
) -> Result<(), Error> {
    let cut = Cut::element_wise(&session.problem, &session.device);
    let channels = cut.channels;
    let mut buffers = Buffers::default();
    let [x, dy, residual, dx, _] = tensors(&mut buffers, &cut, given, target.apart(), None);
    let center = buffers.bind(given.center, given.center_rows() * channels);
    let [first, second, third] = vectors.map(|vector| buffers.bind(vector, channels));
    let same = buffers.bound() - 1;
    // SAFETY: indices stay below the numbers of vectors that the buffers were checked for; see `Walk`.
    unsafe {
        backward::input_grad::launch_unchecked(
            session.client,
            session.grid(cut.cubes())?,
            cut.cube_dim(),
            cut.stored_vector(),
            cut.vector,
            cut.parameter_vector(),
            x,
            dy,
            residual,
            dx,
            center,
            first,
            second,
            third,
            buffers.bind_or_alias(given.shift(), channels, same),
            cut.geometry(),
            session.numbers(given.epilogue.activation),
            session.number(1.0 / session.problem.layout.samples_per_channel() as f64),
            element_blueprint(&cut, given.saved, given.epilogue),
            session.types(&cut),
        );
    }
    session.record(
        "input_grad",
        (2 + given.residual_reads(), given.center_rows() + 4),
        (1, 0),
    );
    Ok(())
}

/// x, dy, residual, dx and dresidual. What is not given is an alias: of x where it is not used, of dy where dx is written over it.
fn tensors(
    buffers: &mut Buffers,
    cut: &Cut,
    given: Given<'_>,
    dx: Option<&Handle>,
    dresidual: Option<&Handle>,
) -> [BufferArg; 5] {
    let len = cut.tensor_len();
    [
        buffers.bind(given.x, len),
        buffers.bind(given.dy, len),
        buffers.bind_or_alias(given.epilogue.residual, len, 0),
        buffers.bind_or_alias(dx, len, 1),
        buffers.bind_or_alias(dresidual, len, 1),
    ]
}

/// Center, scale and shift. Where there is no affine part, nothing reads the latter two.
fn parameters(buffers: &mut Buffers, cut: &Cut, given: Given<'_>) -> [BufferArg; 3] {
    let channels = cut.channels;
    let center = buffers.bind(given.center, given.center_rows() * channels);
    let same = buffers.bound() - 1;
    [
        center,
        buffers.bind_or_alias(given.affine.map(|affine| affine.scale), channels, same),
        buffers.bind_or_alias(given.shift(), channels, same),
    ]
}
