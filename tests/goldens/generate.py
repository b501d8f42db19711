"""Write the golden cases: small safetensors files with inputs and expected outputs.

    python generate.py OUTPUT_DIR [--only PREFIX] [--skip-peers]

Needs torch, numpy and safetensors; the `keras_`, `flax_` and `onnx_` cases also
need keras, flax, jax and onnx (`--skip-peers` leaves them out).

Each file is a case for the case runner: tensors `x`, `x2`, .. `dy`, `gamma`,
`beta`, `running_mean`, `running_var` where given, and the metadata key `case`
with the configuration as JSON (fields that are missing have their default).
Beside them lie the expectations:

    expect.y, expect.y2, ..        outputs of the batches in order
    expect.running_mean, expect.running_var, expect.num_batches_tracked
                                   the state after the last batch
    expect.dx, expect.dgamma, expect.dbeta
                                   gradients of sum(y * dy) of the first batch

`dy` is random: with all ones dx and dgamma vanish and would test nothing.
Further metadata: `about` (what the case is for), `generator` (which packages
gave the numbers, in which precision) and, where one applies, `preset`: the name
of the `BatchNormConfig` preset that must equal the configuration.

Precision. Inputs are rounded to the type of the case first. Expectations are
computed from these rounded inputs in float64 and rounded once when stored, so
a test measures the error of the layer alone. The cases `pytorch_f32_*` are the
exception: they hold what PyTorch itself returns in f32. `half_*` have f16 or
bf16 inputs with f32 parameters; `y` and `dx` have the type of `x`.

Every expectation is checked against numpy formulas (`case_file.py`) before it
is written. The printed table also shows the error that PyTorch itself makes in
the type of the case, a yardstick for tolerances.
"""

import argparse
import platform
from pathlib import Path

import numpy as np
import torch

from case_file import check, worst_error, write_case
from cases import torch_cases
from torch_oracle import torch_expected

# Results of PyTorch against the numpy formulas.
F64_TOLERANCE = 1e-11
CONSTANT_TOLERANCE = 1e-9  # PyTorch cancels 1e4 / sqrt(epsilon) = 3e6
F32_TOLERANCE = 1e-5  # stored straight from f32


def torch_version():
    return torch.__version__.split("+")[0]


def torch_generator(case):
    versions = f"torch {torch_version()}, numpy {np.__version__}, python {platform.python_version()}"
    if case.name.startswith("pytorch_f32_"):
        return f"{versions}; float32 results of PyTorch as they are"
    return f"{versions}; computed in float64, rounded once to the stored type"


def expect_from_torch(case):
    """Expectations of one case, and the error PyTorch makes in the case's own types."""
    exact = torch_expected(case)
    check(case, exact, CONSTANT_TOLERANCE if "constant_channel" in case.name else F64_TOLERANCE)
    own = torch_expected(case, case.x_dtype, case.param_dtype)
    error = max(worst_error(own[key], exact[key]) for key in exact)
    if case.name.startswith("pytorch_f32_"):
        check(case, own, F32_TOLERANCE)
        return own, error
    if "constant_channel" in case.name:
        # PyTorch evaluates x * a + (beta - mean * a), which rounds; exactly beta is right.
        beta = case.params["beta"]
        for key in ("y", "y2", "y3"):
            for channel in (1, 2):
                exact[key][:, channel] = beta[channel]
    return exact, error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write the files into")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only cases whose name starts so")
    parser.add_argument("--skip-peers", action="store_true", help="no cases from Keras, Flax and ONNX")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)

    results = (
        (case, *expect_from_torch(case), torch_generator(case))
        for case in torch_cases()
        if case.name.startswith(args.only)
    )
    total = count = 0
    print(f"{'case':44} {'bytes':>7}  PyTorch against float64")
    for case, expected, error, generator in results:
        size = write_case(args.output, case, expected, generator)
        print(f"{case.name:44} {size:7}  {'-' if case.dtype == 'f64' else f'{error:.1e}'}")
        total, count = total + size, count + 1
    if not args.skip_peers:
        from peers import peer_cases

        for case, expected, generator in peer_cases():
            if case.name.startswith(args.only):
                size = write_case(args.output, case, expected, generator)
                print(f"{case.name:44} {size:7}")
                total, count = total + size, count + 1
    print(f"{count} files, {total} bytes")


if __name__ == "__main__":
    main()
