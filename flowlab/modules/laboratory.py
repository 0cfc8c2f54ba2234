"""The laboratory's own networks as PyTorch modules, so that its numbers can be checked there.

A check of one number in five lines::

    settings = flowlab.make(depth=5, width=32, dtype="float64")
    net = flowlab.to_torch(settings, seed=3)
    x, y, loss = flowlab.modules.laboratory.batch_of(settings, seed=3)
    loss(net(x), y).backward()
    net.layer_2.linear.weight.grad.norm().log10()  # dW_log10_norm of seed 3, layer 2, linear
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowlab.errors import InputError
from flowlab.initializers import Initializer
from flowlab.layer import Workspace, map_leaves
from flowlab.layers.loss import LOSSES
from flowlab.measurement.ensemble import upstream
from flowlab.measurement.passes import Drawn
from flowlab.measurement.setup import Setup, needed, prepare
from flowlab.modules.torch_needed import torch_needed
from flowlab.networks import Network
from flowlab.numerics.blas import one_thread
from flowlab.settings import Settings, given

if TYPE_CHECKING:
    from torch import Tensor, nn


class Fed(NamedTuple):
    """What a run feeds into a network: ``loss(net(x), y)`` is what its gradients are those of.

    ``x`` (batch, ...) is the input. Under a loss ``y`` are its labels (batch,) or targets (batch,
    outputs); otherwise the cotangent, shaped like the output, whose inner product with the output
    ``loss`` is.
    """

    x: "Tensor"
    y: "Tensor"
    loss: "Callable[[Tensor, Tensor], Tensor]"


def to_torch(
    settings: Settings | None = None,
    seed: int | None = None,
    network: Network | str | dict | None = None,
    **axes: Any,
) -> "nn.Sequential":
    """The network that ``measure`` draws under a seed, as a ``torch.nn.Module`` on the CPU.

    Settings are given as to :func:`flowlab.measure`; ``seed`` is by default theirs. Parameters are
    the same numbers in the settings' dtype, as they are before any training.
    :func:`batch_of` gives the batch and the loss.

    The module is a ``torch.nn.Sequential`` of the counted layers ``layer_1``, ``layer_2``, ...: the
    module of an operation of the table is the one whose path begins with ``layer_<layer>`` and ends
    in its ``op``, such as ``layer_3.linear`` or ``layer_3.residual.branch.linear_2``. In it dW and
    db are the gradients of ``weight`` and ``bias``, and so are dgain and dbias of a normalization;
    delta is the cotangent of its output, or of the output of ``layer_3`` in the last row of a
    residual block, and dX what comes back through it alone.
    The two rows of a recurrent layer, ``lstm_ih`` and ``lstm_hh``, share the module
    ``layer_1.lstm.rnn``, whose parameters have these endings; its delta is that of the
    preactivations, within PyTorch's own function. A forget bias is part of ``bias_ih_l0``.
    Batch norm takes its statistics from the batch in evaluation, too. Matrices are PyTorch's, the
    transposes of ours. Registered activations are run by flowlab's kernels.

    PyTorch keeps no exponents: norms beyond the range of its type are 0 or infinite there, but not
    in the table.

    Raises InputError without PyTorch, as :func:`flowlab.measure` does, for a seed that is no whole
    number from 0, and for what has no form in PyTorch: layers of a user's own, batch norm by fixed
    statistics, masked attention, circular padding wider than the image, and an activation whose
    name PyTorch's modules use for something else.
    """
    setup = _setup(settings, seed, network, axes)
    from torch import nn

    from flowlab.modules.translation import translated

    settings, (seed,) = setup.settings, setup.seeds
    gib, _ = needed(settings, setup.batches, setup.network if setup.own else None)
    if gib > settings.memory_gib:
        raise InputError(
            f"memory_gib must be at least {gib:,.2f} for this network in PyTorch; "
            f"got {settings.memory_gib:g}"
        )
    source = Drawn(Initializer(settings.init), setup.seeds, np.dtype(settings.dtype))
    made = nn.Sequential()
    for place in setup.network.walk(setup.shape):
        declared = place.block.declare(place.shape).parameters
        here = np.array([seed]), np.array([place.layer])
        with one_thread():
            drawn = source.parameters(declared, here, np.zeros(1, np.int64), Workspace())
        of_one = map_leaves(lambda array: array.reshape(array.shape[1:]), drawn)
        made.add_module(f"layer_{place.layer}", translated(place.block, place.shape, of_one))
    return made


def batch_of(
    settings: Settings | None = None,
    seed: int | None = None,
    network: Network | str | dict | None = None,
    **axes: Any,
) -> Fed:
    """The batch that ``measure`` feeds into the network of a seed, and the loss: (x, y, loss).

    ``loss(net(x), y).backward()`` gives the gradients of the table; arguments are those of
    :func:`to_torch`. Of a training it is the batch of the first step. Raises InputError as
    :func:`to_torch` does, and for inputs that the settings' dtype cannot hold.
    """
    setup = _setup(settings, seed, network, axes)
    import torch

    settings = setup.settings
    x, labels = setup.batches(setup.seeds)
    if x.dtype != settings.dtype:
        raise InputError(
            f"inputs of {settings.data.name} must be in the range of {settings.dtype} for PyTorch; "
            f"got {np.abs(x).max():g} at most"
        )
    shape = setup.network.chain.declare(setup.shape).output
    if settings.upstream != "loss":
        y, zero = np.empty((1, *shape), settings.dtype), np.zeros(1, np.int64)
        (y, _), _ = upstream(settings, setup.seeds, y, zero, labels, zero, Workspace())
        loss = _inner
    elif LOSSES[settings.loss].of_values:
        compared = LOSSES[settings.loss](settings.reduction)
        y = compared.given(labels, shape[-1], x.dtype)["target"]
        loss = torch.nn.MSELoss(reduction=settings.reduction)
    else:
        y, loss = labels, torch.nn.CrossEntropyLoss(reduction=settings.reduction)
    return Fed(*(torch.from_numpy(np.array(array[0])) for array in (x, y)), loss)


def _inner(output, cotangent):
    """A number whose gradient with respect to the output is the cotangent."""
    return (output * cotangent).sum()


def _setup(
    settings: Settings | None,
    seed: int | None,
    network: Network | str | dict | None,
    axes: dict[str, Any],
) -> Setup:
    """The run of one seed; InputError without PyTorch."""
    torch_needed()
    own = network if isinstance(network, Network) else None
    if network is not None and own is None:
        axes = axes | {"network": network}
    settings = given(settings, axes)
    seed = settings.seed if seed is None else seed
    if not hasattr(seed, "__index__") or isinstance(seed, bool):
        raise InputError(f"seed must be an integer; got {seed!r}")
    return prepare(replace(settings, seed=int(seed), seeds=1), network=own)
