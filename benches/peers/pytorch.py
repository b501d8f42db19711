"""PyTorch's batch norm against ours, shape by shape, in one run.

Why: "faster than PyTorch" is only worth something on the same machine, shapes and
threads, taking turns, and against the faster of the two ways to run it: eagerly,
and compiled by `torch.compile`, shape by shape. `batch_norm` runs with gamma, beta
and running statistics, then what `--epilogue` says, eagerly in place as
torchvision's networks do; backward is `torch.autograd.grad` for all inputs with a
given upstream gradient, as the suite does it.

    cargo build --release -p batchnorm-benches
    python benches/peers/pytorch.py [--suite target/release/suite] [--device flex]
        [--epilogue none|relu|add-relu] [--dtype f32|f16|bf16] [--eager]
        [--shapes 32x50,..] [--rounds 5] [--threads N] [--json FILE]

Needs torch, and a C++ compiler unless `--eager` leaves out the compiled way. The
JSON has the suite's fields, `torch_ms` of the faster way, and both.
"""

import torch
from torch.nn.functional import batch_norm

from peer import arguments, compare

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def more(parser):
    parser.add_argument("--epilogue", choices=["none", "relu", "add-relu"])
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--eager", action="store_true", help="not compiled")


def passes_of(shape, options, way=lambda function: function):
    torch.manual_seed(1)
    dtype = DTYPES[options.dtype]
    x, dy, skip = (torch.randn(shape, dtype=dtype) for _ in range(3))
    channels = shape[1]
    gamma, beta = torch.ones(channels), torch.zeros(channels)
    mean, var = torch.zeros(channels), torch.ones(channels)
    inputs = [x, gamma, beta] + [skip] * (options.epilogue == "add-relu")
    for tensor in inputs:
        tensor.requires_grad_()

    def layer(x, gamma, beta, skip, training):
        y = batch_norm(x, mean, var, gamma, beta, training, 0.1, 1e-5)
        if options.epilogue == "add-relu":
            y += skip
        return y if options.epilogue == "none" else y.relu_()

    layer = way(layer)

    def forward():
        return layer(x, gamma, beta, skip, True)

    def forward_backward():
        return torch.autograd.grad(forward(), inputs, dy)

    @torch.no_grad()
    def inference():
        return layer(x, gamma, beta, skip, False)

    return forward, forward_backward, inference


def compiled(shape, options):
    # Else it compiles for any shape from the second on.
    torch._dynamo.reset()
    return passes_of(shape, options, lambda layer: torch.compile(layer, dynamic=False))


if __name__ == "__main__":
    options = arguments(__doc__.splitlines()[0], more)
    torch.set_num_threads(options.threads)
    # As the suite does: glibc learns from it to keep freed memory (`settle_allocator`).
    torch.empty(31 << 20, dtype=torch.uint8)
    print(f"PyTorch {torch.__version__}, {options.threads} threads, ours: {options.suite.name} "
          f"on {options.device}, {options.epilogue}, {options.dtype}")
    peers = {"eager": lambda shape: passes_of(shape, options)}
    if not options.eager:
        peers["compiled"] = lambda shape: compiled(shape, options)
    compare(options, "torch", peers)
