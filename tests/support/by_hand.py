"""The rows of a model's table by hand: ``torch.autograd.grad`` and ``.grad``, sums in float64."""

import dataclasses
import math
from collections import defaultdict

import torch
from torch import nn

ACTIVATIONS = "torch.nn.modules.activation"
NORMALIZATIONS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d)
NORMALIZATIONS += (nn.BatchNorm1d, nn.BatchNorm2d)
COLUMNS = {
    (False, False): "dW_log10_norm",
    (False, True): "db_log10_norm",
    (True, False): "dgain_log10_norm",
    (True, True): "dbias_log10_norm",
}


def log10_norm(tensors):
    """log10 of the root of the sum of squares of several tensors, nan of none."""
    tensors = [t.detach().to_dense() for t in tensors]
    if not tensors:
        return math.nan
    square = sum(float(t.abs().double().square().sum()) for t in tensors)
    return 0.5 * math.log10(square) if square else -math.inf


def flat(value, name=""):
    """(name, tensor) of the floating-point tensors in a value, as ``hidden.0``."""
    if isinstance(value, torch.Tensor):
        return [(name[1:], value)] if value.is_floating_point() or value.is_complex() else []
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return [pair for key, part in value.items() for pair in flat(part, f"{name}.{key}")]
    return []


def detached(value, known):
    """The same structure with tensors that need gradients cut off, equal ones staying one."""
    if isinstance(value, torch.Tensor):
        if id(value) not in known:
            known[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
        return known[id(value)]
    if isinstance(value, (tuple, list)):
        return type(value)(detached(part, known) for part in value)
    if isinstance(value, dict):
        return {key: detached(part, known) for key, part in value.items()}
    return value


def default(module):
    own = next(module.parameters(recurse=False), None) is not None
    return own or type(module).__module__ == ACTIVATIONS


def calls(model, run, chosen=default):
    """(loss, [(path, use, module, args, kwargs, output, autocast's type)]) of a forward pass."""
    found, uses, handles = [], defaultdict(int), []

    def hook(path):
        def seen(module, args, kwargs, output):
            uses[path] += 1
            cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            found.append((path, uses[path], module, args, kwargs, output, cast))

        return seen

    for path, module in model.named_modules():
        if chosen(module):
            handles.append(module.register_forward_hook(hook(path), with_kwargs=True))
    loss = run(model)
    for handle in handles:
        handle.remove()
    return loss, found


def gradients(loss, found):
    """For each call: its outputs by name, their cotangents, and its gradients of its inputs."""
    for path, use, module, args, kwargs, output, cast in found:
        outputs = {name: t for name, t in flat(output)}
        wanted = {name: t for name, t in outputs.items() if t.requires_grad}
        deltas = {}
        if wanted:
            came = torch.autograd.grad(
                loss, list(wanted.values()), retain_graph=True, allow_unused=True
            )
            deltas = {name: g for name, g in zip(wanted, came, strict=True) if g is not None}
        known = {}
        again = detached((args, kwargs), known)
        inputs = [t for t in known.values() if t.requires_grad]
        dx = []
        if inputs and deltas:
            with torch.autocast("cpu", cast, enabled=cast is not None):
                mine = dict(flat(module(*again[0], **again[1])))
            names = list(deltas)
            dx = torch.autograd.grad(
                [mine[n] for n in names], inputs, [deltas[n] for n in names], allow_unused=True
            )
        yield path, use, outputs, deltas, [g for g in dx if g is not None]


def rows(model, runs, chosen=default):
    """{(module, use, output, parameter): {column: value}} of several micro-batches ``runs``.

    Each is a function of the model that gives a loss. Columns are those that have a value.
    """
    parts = defaultdict(lambda: defaultdict(list))
    order = []
    model.zero_grad()
    for run in runs:
        loss, found = calls(model, run, chosen)
        for path, use, outputs, deltas, dx in gradients(loss, found):
            single = len(outputs) == 1
            for name, tensor in outputs.items():
                for output in {None} if single else {None, name}:
                    key = path, use, output, None
                    parts[key]["activation_log10_norm"].append(tensor)
                    parts[key]["delta_log10_norm"] += [deltas[name]] if name in deltas else []
            parts[path, use, None, None]["dX_log10_norm"] += dx
            order.append((path, use))
        loss.backward()
    for owner, module in model.named_modules():
        for name, value in module.named_parameters(recurse=False):
            column = COLUMNS[isinstance(module, NORMALIZATIONS), "bias" in name]
            parts[owner, None, None, name][column] += [] if value.grad is None else [value.grad]
            parts[owner, None, None, name]["W_log10_norm"].append(value)
    shared = defaultdict(list)  # a parameter has the first of its places
    for owner, module in model.named_modules():
        for name, value in module.named_parameters(recurse=False):
            shared[value].append((owner, None, None, name))
    for places in shared.values():
        for other in places[1:]:
            del parts[other]
    found = {
        key: {column: log10_norm(tensors) for column, tensors in of.items() if tensors}
        for key, of in parts.items()
    }
    return found, list(dict.fromkeys(order))
