//! The launches of the backward operations.

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::backward::Call;
use crate::blueprint::{Parameters, Source};
use crate::kernels::{backward, sums};
use crate::launch::{Buffers, Session};
use crate::normalize::Given;
use crate::strategy::Cut;

/// A checked call, with somewhere to write every sum.
#[derive(Clone)]
pub(crate) struct Pass<'a> {
    call: Call<'a>,
    gamma_grad: Handle,
    beta_grad: Handle,
}

impl<'a> Pass<'a> {
    /// Sums that nobody asked for go to scratch buffers.
    pub fn new(session: &Session<'_>, call: Call<'a>) -> Self {
        let place = |wanted: Option<&Handle>| match wanted {
            Some(handle) => handle.clone(),
            None => session.scratch(1),
        };
        Self {
            call,
            gamma_grad: place(call.out.gamma),
            beta_grad: place(call.out.beta),
        }
    }

    /// The same with all parameters in one buffer, which [`sums_finish`](Self::sums_finish) has filled.
    pub fn with_prepared<'b>(&'b self, prepared: &'b Handle) -> Pass<'b> {
        let given = Given {
            center: prepared,
            variance: None,
            beta: None,
            parameters: Parameters::Prepared,
            ..self.call.given
        };
        Pass {
            call: Call { given, ..self.call },
            ..self.clone()
        }
    }

    /// x, the output gradient, the residual and the two tensors that are written, or aliases: of x where they are not used, of the output
    /// gradient where that of the input is written over it.
    fn tensors(&self, buffers: &mut Buffers, cut: &Cut, writes: bool) -> [BufferArg; 5] {
        let len = cut.span;
        let input = self.call.out.input.and_then(|target| target.apart());
        [
            buffers.bind(self.call.x, len),
            buffers.bind(self.call.dy, len),
            buffers.bind_or_alias(self.call.epilogue.residual, len, 0),
            buffers.bind_or_alias(input.filter(|_| writes), len, 1),
            buffers.bind_or_alias(self.call.out.residual.filter(|_| writes), len, 1),
        ]
    }

    /// Tensors besides x and the output gradient that are read, and tensors that are written.
    fn traffic(&self) -> (usize, usize) {
        let out = self.call.out;
        (
            usize::from(self.call.epilogue.residual.is_some()),
            usize::from(out.input.is_some()) + usize::from(out.residual.is_some()),
        )
    }

    /// The kernel that writes everything that is wanted, from the sums of `source`.
    pub fn gradients(
        &self,
        session: &mut Session<'_>,
        cut: Cut,
        source: Source,
        partials: Option<(&Handle, usize)>,
    ) {
        let channels = cut.channels;
        let splits = partials.map_or(0, |(_, splits)| splits);
        let blueprint = self.call.blueprint(&cut, source);
        let mut buffers = Buffers::default();
        let [x, dy, residual, dx, dresidual] = self.tensors(&mut buffers, &cut, true);
        let same = buffers.bound();
        let [center, variance, gamma, beta] = self.call.given.bind(&mut buffers, channels);
        let sums = source != Source::Parameters;
        // Only the sweep behind the sums reads weights.
        let reads = blueprint.late() && blueprint.shares();
        let weights = self.call.given.weights.filter(|_| reads);
        // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
        unsafe {
            backward::gradients::launch_unchecked(
                session.client,
                session.grid(&cut),
                cut.cube_dim(),
                cut.stored_vector(),
                cut.vector,
                cut.parameter_vector(),
                cut.weight_vector(blueprint.element.weighting),
                x,
                dy,
                residual,
                dx,
                dresidual,
                center,
                variance,
                gamma,
                beta,
                buffers.bind_or_alias(partials.map(|p| p.0), 2 * splits * channels, same),
                buffers.bind_or_alias(sums.then_some(&self.gamma_grad), channels, same),
                buffers.bind_or_alias(sums.then_some(&self.beta_grad), channels, same),
                buffers.bind_weights(weights, &cut, same),
                cut.geometry(),
                session.numbers(),
                splits,
                blueprint,
                session.types(&cut),
            );
        }
        let sweeps = usize::from(source == Source::Tensor) + usize::from(blueprint.late());
        let (read, written) = self.traffic();
        session.record(
            "gradients",
            (sweeps * (2 + read), self.call.given.vectors() + 2 * splits),
            (written, 2 * usize::from(sums)),
        );
        session.record_weights(weights);
    }

    /// The sums of the splits, in a scratch buffer, and what does not wait for them.
    pub fn sums_partial(&self, session: &mut Session<'_>, cut: Cut) -> Handle {
        let rows = 2 * cut.splits();
        let partials = session.scratch(rows);
        let mut blueprint = self.call.blueprint(&cut, Source::Tensor);
        // What waits for the sums makes no other kernel of this one.
        blueprint.input &= blueprint.given();
        blueprint.residual &= blueprint.given();
        let mut buffers = Buffers::default();
        let [x, dy, residual, dx, dresidual] = self.tensors(&mut buffers, &cut, blueprint.early());
        let [center, variance, gamma, beta] = self.call.given.bind(&mut buffers, cut.channels);
        // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
        unsafe {
            sums::sums_partial::launch_unchecked(
                session.client,
                session.grid(&cut),
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
                variance,
                gamma,
                beta,
                buffers.bind(&partials, rows * cut.channels),
                cut.geometry(),
                session.numbers(),
                blueprint,
                session.types(&cut),
            );
        }
        let (read, written) = self.traffic();
        session.record(
            "sums_partial",
            (2 + read, self.call.given.vectors()),
            (written * usize::from(blueprint.early()), rows),
        );
        partials
    }

    /// The gradients of gamma and beta from the sums of the splits, and all that a sweep needs in `prepared`.
    pub fn sums_finish(
        &self,
        session: &mut Session<'_>,
        splits: usize,
        partials: &Handle,
        prepared: Option<&Handle>,
    ) {
        let cut = Cut::finish(splits, session.problem.layout.channels, &session.device);
        let channels = cut.channels;
        let mut buffers = Buffers::default();
        let partials = buffers.bind(partials, 2 * splits * channels);
        let [center, variance, gamma, beta] = self.call.given.bind(&mut buffers, channels);
        // SAFETY: indices stay below the numbers of vectors that the buffers were checked or allocated for; see `Walk`.
        unsafe {
            sums::sums_finish::launch_unchecked(
                session.client,
                session.grid(&cut),
                cut.cube_dim(),
                cut.vector,
                partials,
                center,
                variance,
                gamma,
                beta,
                buffers.bind(&self.gamma_grad, channels),
                buffers.bind(&self.beta_grad, channels),
                buffers.bind_or_alias(prepared, 6 * channels, 0),
                cut.geometry(),
                session.numbers(),
                self.call.given.parameters,
                prepared.is_some(),
                cut.shape,
                session.arithmetic(),
            );
        }
        let written = 2 + 6 * usize::from(prepared.is_some());
        session.record(
            "sums_finish",
            (0, 2 * splits + self.call.given.vectors()),
            (0, written),
        );
    }
}
