"""How a batch goes through a user's model to a loss."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from flowlab.errors import InputError

Make = Callable[..., nn.Module]
Loss = Callable[..., torch.Tensor] | None


def made(make: Make, depth: int, seed: int) -> nn.Module:
    """``make(depth)``, with its ``seed`` if it takes one, and PyTorch's stream at the seed.

    Raises InputError for what makes no module.
    """
    torch.manual_seed(seed)
    try:
        own = "seed" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # of what is not written in Python
        own = False
    model = make(depth, seed=seed) if own else make(depth)
    if not isinstance(model, nn.Module):
        raise InputError(f"make must return a torch.nn.Module; got {type(model).__name__}")
    return model


def batch_of(batch: Any, seed: int) -> Any:
    """The batch of a seed: ``batch`` itself, or what it returns as a function of the seed."""
    return batch(seed) if callable(batch) and not isinstance(batch, torch.Tensor) else batch


def inputs_of(batch: Any) -> Any:
    """What a batch gives the model: the first of a pair, or all of it."""
    return batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch


def first_of(inputs: Any) -> torch.Tensor:
    """The first tensor that a model is given."""
    while not isinstance(inputs, torch.Tensor):
        inputs = next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))
    return inputs


def output_of(model: nn.Module, inputs: Any) -> Any:
    """The model's output: tuples are its arguments, dictionaries its keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def loss_of(model: nn.Module, batch: Any, loss: Loss) -> torch.Tensor:
    """The loss of a batch, ``(inputs, target)``, a dictionary of keywords, or inputs alone.

    ``loss(output, target)`` has the target of a pair, and the whole batch otherwise; without a
    ``loss`` the output must hold one, as that of many language models does. Raises InputError for a
    loss that is no single number.
    """
    output = output_of(model, inputs_of(batch))
    if loss is None:
        found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if found is None:
            raise InputError(
                "loss must be a function of (output, target) unless the output holds a loss; "
                f"got None and an output of type {type(output).__name__}"
            )
    else:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        found = loss(output, batch[1] if pair else batch)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(f"loss must return a single number to go back from; got {what}")
    return found
