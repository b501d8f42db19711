"""What PyTorch answers to a case.

`torch.nn.BatchNorm1d/2d/3d` do the work. Options that PyTorch lacks are
composed from it: another channel axis by `movedim`, a shift without a scale by
a weight of ones that gets no gradient, the biased running variance by blending
`torch.var(correction=0)` with the same weight.
"""

import torch

from case_file import exists


def module_for(case, param_dtype):
    """The PyTorch layer of a case, with its tensors put in."""
    kind = {
        2: torch.nn.BatchNorm1d,
        3: torch.nn.BatchNorm1d,
        4: torch.nn.BatchNorm2d,
        5: torch.nn.BatchNorm3d,
    }[case.batches[0].ndim]
    layer = kind(
        case.channels,
        eps=case.epsilon,
        momentum=None if case.averaging == "Cumulative" else case.momentum,
        affine=case.scale or case.shift,
        bias=case.shift,
        track_running_stats=case.running_stats,
        dtype=param_dtype,
    )
    layer.train(case.training)
    targets = {"gamma": layer.weight, "beta": layer.bias}
    targets |= {"running_mean": layer.running_mean, "running_var": layer.running_var}
    with torch.no_grad():
        for name, values in case.params.items():
            targets[name].copy_(torch.from_numpy(values))
        if case.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(case.num_batches_tracked)
    if layer.weight is not None:
        layer.weight.requires_grad_(case.scale)
    return layer


def torch_expected(case, x_dtype=torch.float64, param_dtype=torch.float64):
    """Outputs of a case as numpy arrays, computed in the given types."""
    layer = module_for(case, param_dtype)
    out = {}
    for i, values in enumerate(case.batches):
        x = torch.tensor(values, dtype=x_dtype, requires_grad=True)
        moved = x.movedim(case.axis, 1)
        if case.running_stats:
            previous_var = layer.running_var.clone()
        y = layer(moved).movedim(1, case.axis)
        out["y" if i == 0 else f"y{i + 1}"] = y
        if i == 0 and case.dy is not None:
            (y * torch.tensor(case.dy, dtype=x_dtype)).sum().backward()
            out["dx"] = x.grad
            if case.scale:
                out["dgamma"] = layer.weight.grad
            if case.shift:
                out["dbeta"] = layer.bias.grad
        if case.training and case.running_stats and case.variance == "Biased":
            count = layer.num_batches_tracked.item()
            weight = 1 / count if case.averaging == "Cumulative" else case.momentum
            dims = [d for d in range(moved.ndim) if d != 1]
            biased = moved.detach().to(param_dtype).var(dims, correction=0)
            layer.running_var.copy_(previous_var * (1 - weight) + biased * weight)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if exists(case, name):
            out[name] = getattr(layer, name)
    return {k: v.detach().to(torch.float64 if v.is_floating_point() else v.dtype).numpy() for k, v in out.items()}
