"""Predicted norms of every layer of a fully-connected net, plain or residual, without drawing it.

The recursion over the layers is `flowlab.theory.log_norms`'; here a net is put into its terms, and
what it finds of single examples becomes the norms over a batch that a measurement has.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import digamma, polygamma

from flowlab.errors import InputError, unknown
from flowlab.theory.activations import ActivationFunction, get_activation
from flowlab.theory.batch_average import nodes
from flowlab.theory.finite_width import chi_square_step
from flowlab.theory.log_norms import LinearMap, LogNorms, NetBlock
from flowlab.theory.moments import NO_SIGNAL
from flowlab.theory.upstream import LOSSES, UPSTREAMS, Top

SKIPS = ("none", "identity", "scaled", "mix", "rezero", "fixup")
QUANTITIES = ("activation", "delta", "dX", "dW", "db")


def norms_by_layer(
    *,
    fan_in: Sequence[int],
    fan_out: Sequence[int],
    sigma_w2: Sequence[float],
    sigma_b2: Sequence[float],
    activation: str | ActivationFunction,
    skip: str = "none",
    branch_scale: float = 1.0,
    branch_maps: int = 1,
    output_scale: float | None = None,
    readout: bool = False,
    orthogonal: bool = False,
    batch_size: int,
    upstream: str,
    loss: str = "cross_entropy",
    target_square: float = 1.0,
    n_classes: int | None = None,
    reduction: str = "mean",
    input_log_q,
    input_c: float,
    input_c2: float | None = None,
) -> pd.DataFrame:
    """Mean over seeds and one-seed standard deviation of every layer's log10 norms.

    The net: z_1 = x W_1 + b_1, then z_l = phi(z_{l-1}) W_l + b_l, or with a skip
    z_l = s (z_{l-1} + a f(z_{l-1})), f a branch of ``branch_maps`` (1 or 2) maps phi(.) W + b;
    with ``readout`` the last layer of a skip net is plain. delta_l = dLoss/dz_l.

    fan_in, fan_out, sigma_w2, sigma_b2: (layers,), sigma_w2 = fan_in Var(W); both maps of a branch
    share them.
    skip: ``none``; ``identity`` (s = a = 1); ``scaled`` (a = ``branch_scale``); ``mix``
    (s = 1/sqrt 2); ``rezero`` (a = 0); ``fixup`` (two maps: sigma_w2 of the first is divided by the
    number of blocks, the last map is zero). ``output_scale`` overrides s.
    batch_size: B. upstream: ``gaussian`` and ``ones`` are cotangents of unit entries at z_L;
    ``loss`` is that of a loss over ``n_classes`` (default fan_out[-1]) with labels uniform and
    independent of the Gaussian logits: softmax ``cross_entropy``, or ``squared_error``, whose
    cotangent is 2 (z - t), targets t with mean square norm ``target_square`` (1 if one-hot).
    reduction: ``mean`` divides the cotangent by B (by B K).
    input_log_q: log(||x||^2/fan_in) of every example, (batches, B), one batch for a seed, -inf for
    an example that is zero; a single number if they are equal. input_c, input_c2: mean and mean
    square of the cosine of two examples of a batch (by default input_c^2).

    Returns one row per layer: ``layer`` and ``activation_log10_norm`` (of phi(z_l), of z_l in a
    skip net and in the last layer), ``delta_log10_norm``, ``dX_log10_norm`` (at the input of the
    layer's last linear map), ``dW_log10_norm``, ``db_log10_norm`` (of that map), each also with
    suffix ``_sd``; ``q`` = E z_l^2; ``chi``, the infinite-width ratio of ||delta_l||^2 to
    ||delta_{l+1}||^2 (nan in the last row); ``delta_log10_norm_infinite``; ``slope_error``, how far
    the mean may be off per layer, in decades (`LogNorms._error` says why). Exact zeros are -inf;
    dW and db are nan for ``upstream=loss``, whose deltas correlate with the inputs.
    Raises `InputError` for bad arguments.
    """
    act = get_activation(activation)
    columns = (fan_in, fan_out, sigma_w2, sigma_b2)
    input_log_q = np.atleast_2d(np.asarray(input_log_q, dtype=float))
    _check(columns, skip, branch_maps, readout, batch_size, upstream, loss, reduction, input_log_q)
    fan_in, fan_out, sigma_w2, sigma_b2 = (np.asarray(column) for column in columns)
    if skip == "fixup":
        branch_maps = 2
    depth, top = len(fan_in), int(fan_out[-1])
    with np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
        log_w2, log_b2 = (np.log(np.asarray(s, dtype=float)) for s in (sigma_w2, sigma_b2))
        suppressed = np.minimum(1.0, fan_in / fan_out) if orthogonal else np.zeros(depth)
        blocks = _blocks(
            log_w2,
            log_b2,
            fan_in,
            suppressed,
            skip,
            branch_scale,
            branch_maps,
            output_scale,
            readout,
        )
        examples = nodes(input_log_q, batch_size, few=act.homogeneous and not np.any(sigma_b2))
        squared = input_c**2 if input_c2 is None else input_c2
        flow = LogNorms(act, blocks, fan_out, examples, skip == "none")
        flow.forward(log_w2[0], log_b2[0], input_c, squared, suppressed[0])
        units = (top, n_classes or top)
        flow.backward(Top.of(flow, upstream, loss, target_square, *units, reduction))
        return _table(flow, log_w2, fan_in, suppressed, input_c, upstream, skip)


def _check(columns, skip, branch_maps, readout, batch_size, upstream, loss, reduction, input_log_q):
    for what, received, known in (
        ("skip", skip, SKIPS),
        ("upstream", upstream, UPSTREAMS),
        ("loss", loss, LOSSES),
        ("reduction", reduction, ("mean", "sum")),
    ):
        if received not in known:
            raise unknown(what, received, known)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or lengths[0] < 1 + readout:
        raise InputError(
            f"fan_in, fan_out, sigma_w2 and sigma_b2 must have one entry per layer; got {lengths}"
        )
    for name, values in (("sigma_w2", columns[2]), ("sigma_b2", columns[3])):
        if not np.all(np.asarray(values) >= 0):
            raise InputError(f"{name} must be at least 0; got {min(values)}")
    if branch_maps not in (1, 2):
        raise InputError(f"branch_maps must be 1 or 2; got {branch_maps}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    if not np.all(input_log_q < np.inf):
        raise InputError(f"input_log_q must be below infinity; got {input_log_q.max()}")
    if input_log_q.shape[1] not in (1, batch_size):
        raise InputError(
            f"input_log_q must be of {batch_size} examples; got {input_log_q.shape[1]}"
        )


def _blocks(
    log_w2, log_b2, fan_in, suppressed, skip, branch_scale, branch_maps, output_scale, readout
):
    """The blocks that make z_2 .. z_L."""
    depth = len(fan_in)
    branch = {"scaled": branch_scale, "rezero": 0.0}.get(skip, 1.0)
    scale = output_scale or (np.sqrt(0.5) if skip == "mix" else 1.0)
    residual_layers = 0 if skip == "none" else depth - 1 - readout
    blocks = []
    for layer in range(1, depth):
        residual = layer <= residual_layers
        maps = []
        for index in range(branch_maps if residual else 1):
            w2, b2 = log_w2[layer], log_b2[layer]
            if residual and skip == "fixup":
                w2 = w2 - np.log(residual_layers) if index == 0 else -np.inf
                b2 = b2 if index == 0 else -np.inf
            maps.append(LinearMap(float(w2), float(b2), int(fan_in[layer]), suppressed[layer]))
        scales = (2 * np.log(scale), 2 * np.log(branch)) if residual else (0.0, 0.0)
        blocks.append(NetBlock(maps, residual, *(float(s) for s in scales)))
    return blocks


def _table(flow, log_w2, fan_in, suppressed, input_c, upstream, skip):
    depth, batch = len(flow.log_q), flow.examples.batch
    fan_out = np.array(flow.fan_out)
    variance = np.array([state.variance for state in flow.states])
    log, var = {}, {}
    log_z = np.array(flow.log_z)
    log["activation"], var["activation"] = flow.batched(log_z, variance)
    log["activation"] += np.log(batch * fan_out)

    # The input of the last linear map of each layer: its log norm squared, law and overlap.
    first = np.maximum(flow.examples.log_q, NO_SIGNAL)
    x_mean = np.array([first, *flow.y_mean])
    x_variance = np.array([np.zeros(flow.members), *flow.y_variance])
    last = [sites[-1] for sites in flow.sites]
    x_c = np.r_[input_c, [site.phi_c for site in last]]
    if skip == "none" and depth > 1:
        hidden = flow.batched(x_mean[1:], x_variance[1:])
        log["activation"][:-1] = hidden[0] + np.log(batch * fan_out[:-1])
        var["activation"][:-1] = hidden[1]
    log["activation"][log["activation"] <= NO_SIGNAL / 2] = -np.inf

    infinite = flow.examples.log_mean(flow.delta_infinite).mean(axis=1) + np.log(batch)
    log["delta"], var["delta"] = flow.batched(flow.delta_mean, flow.delta_variance)
    log["delta"] += np.log(batch)

    # Cotangent at the output of that linear map: s a delta.
    scale = np.r_[0.0, [b.log_scale2 + b.log_branch2 for b in flow.blocks]]
    own = flow.delta_mean + flow.delta_variance[:, : flow.count] / 2
    counted = flow.examples.effective(own)
    step = np.array([chi_square_step(int(n)) for n in fan_in])
    averaged = (1 + (counted - 1) * flow.alpha) / counted * (1 - suppressed)
    last_w2 = np.r_[log_w2[0], [block.maps[-1].log_sigma_w2 for block in flow.blocks]]
    log["dX"] = scale + log["delta"] + last_w2 + step[:, 0] * averaged
    var["dX"] = var["delta"] + step[:, 1] * averaged

    # ||h_b||^2 ||delta_b||^2: the two are correlated by what both know of x.
    pull = np.zeros((depth, flow.members))
    for layer, (site, forth) in enumerate(zip(last, flow.steps, strict=True), start=1):
        pull[layer] = flow.sensitivity[layer] * forth.share * site.weight
    product = flow.delta_variance + x_variance * (1 + 2 * pull)
    log["db"], var["db"] = log["delta"].copy(), var["delta"]
    log["dW"], var["dW"] = flow.batched(x_mean + flow.delta_mean, product)
    log["dW"] += np.log(batch) + np.log(fan_in)
    for name, overlap in (("dW", x_c), ("db", np.ones(depth))):
        gain, mean, variance = _summed(counted, flow.alpha, flow.r, overlap)
        log[name] = scale + log[name] + np.log(gain) + mean
        log[name][log[name] <= NO_SIGNAL / 2] = -np.inf
        var[name] = np.maximum(var[name] + variance, 0.0)
        if upstream == "loss":
            log[name], var[name] = np.full(depth, np.nan), np.full(depth, np.nan)

    to_log10 = 0.5 / np.log(10)
    columns = {"layer": np.arange(1, depth + 1)}
    for name in QUANTITIES:
        columns[f"{name}_log10_norm"] = log[name] * to_log10
        # Linearisation can push a variance below zero where it fails (see above).
        columns[f"{name}_log10_norm_sd"] = np.sqrt(np.maximum(var[name], 0.0)) * to_log10
    log_q = flow.examples.log_mean(np.array(flow.log_q))
    columns["q"] = np.exp(log_q).mean(axis=1)
    columns["chi"] = np.exp(np.append(-np.diff(infinite), np.nan))
    columns["delta_log10_norm_infinite"] = infinite * to_log10
    columns["slope_error"] = flow.error * to_log10 / max(depth - 1, 1)
    return pd.DataFrame(columns)


def _summed(batch, alpha, r, overlap):
    """From sum_b ||g_b||^2 to ||sum_b g_b||^2, g_b = x_b delta_b^T: gain, log mean, log variance.

    The expectation is (1 + (B-1) r c_X). Off-diagonal products fluctuate with variance
    alpha - r^2 about r; the sum is matched to a chi-square of that relative variance. Alpha, a
    ratio of means, weighs the seeds of large norm: in a linear net it obeys, per layer 1/n,
    alpha' = (1 - alpha)(1 + 2 alpha), and the plain mean squared cosine (1 - a)(1 - 2 a) (drop
    its spread over seeds). Eliminating the depth from the two gives the latter.
    """
    gain = np.maximum(1 + (batch - 1) * r * overlap, 1e-12)
    free = np.maximum(1 - r * r, 1e-12)
    excess = np.clip((alpha - r * r) / free, 0.0, 1 - 1e-9)
    growth = np.cbrt((1 + 2 * excess) / (1 - excess))
    cosine2 = (growth - 1) / (2 * growth - 1) * free
    relative = 2 * (1 - 1 / batch) * cosine2 * overlap**2 / gain**2
    freedom = 2 / np.maximum(relative, 1e-9)
    return gain, digamma(freedom / 2) + np.log(2 / freedom), polygamma(1, freedom / 2)
