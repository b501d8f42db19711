"""PyTorch's batch norm against ours, shape by shape, in one run.

Why: "faster than PyTorch" is only worth something on the same machine, shapes and
threads, taking turns. `torch.nn.functional.batch_norm` runs with gamma, beta and
running statistics; backward is `torch.autograd.grad` for x, gamma and beta with a
given upstream gradient, as the suite does it.

    cargo build --release -p batchnorm-benches
    python benches/peers/pytorch.py [--suite target/release/suite] [--device flex]
        [--shapes 32x50,..] [--rounds 5] [--threads N] [--json FILE]

Needs torch. The JSON has the suite's fields, and `torch_ms`.
"""

import torch
from torch.nn.functional import batch_norm

from peer import arguments, compare


def passes_of(shape):
    torch.manual_seed(1)
    x, dy = torch.randn(shape), torch.randn(shape)
    channels = shape[1]
    gamma, beta = torch.ones(channels), torch.zeros(channels)
    mean, var = torch.zeros(channels), torch.ones(channels)
    inputs = [t.requires_grad_() for t in (x, gamma, beta)]

    def forward():
        return batch_norm(x, mean, var, gamma, beta, True, 0.1, 1e-5)

    def forward_backward():
        return torch.autograd.grad(forward(), inputs, dy)

    @torch.no_grad()
    def inference():
        return batch_norm(x, mean, var, gamma, beta, False, 0.1, 1e-5)

    return forward, forward_backward, inference


if __name__ == "__main__":
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(options.threads)
    # As the suite does: glibc learns from it to keep freed memory (`settle_allocator`).
    torch.empty(31 << 20, dtype=torch.uint8)
    print(f"PyTorch {torch.__version__}, {options.threads} threads, ours: {options.suite.name} "
          f"on {options.device}")
    compare(options, "torch", passes_of)
