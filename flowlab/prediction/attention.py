"""Transformers: `flowlab.theory.attention.token_flow` from the embedded tokens on.

Their squares and their cosine come from the inputs' moments, the embedding's sigma_w2 and the
positions' variance. Where norms stand before the branches every token grows from a square of its
own (`_each_token`). Read-outs average the tokens: a cotangent's cosine is then 1 on top, and its
square a token's T-th. Theory's error of a block's log rate is 0.02 for norms before the branches,
0.04 for others (`flowlab.theory.attention`), of the share of it that branches carry; that width and
number of tokens fluctuate is in it, so that no spread is given.

Silent: causal attention, batch norm over tokens, biases drawn, identity weights, fewer than two
tokens, norms behind the sums of a net without a skip, logits that vary by more than 400.
"""

import math

import numpy as np
import pandas as pd

from flowlab.errors import InputError
from flowlab.prediction.inputs import Inputs
from flowlab.prediction.rows import IDENTITY, by_operation, curve
from flowlab.theory.attention import TokenFlow, token_flow

_ERROR = {"pre": 0.02, "post": 0.04, "none": 0.04}


def predict(given: Inputs) -> pd.DataFrame | str:
    """delta and activation (that of blocks) at every block's output."""
    settings, network = given.settings, given.settings.network
    place = "none" if settings.norm == "none" else network.placement
    skip, reads = settings.skip != "none", given.outputs is not None
    count, tokens = settings.depth - 1 - reads, given.batches.example[0]
    for fails, because in (
        (
            count < 1,
            f"without blocks there is no step; depth={2 + reads} has a prediction",
        ),
        (given.initializer.identity, IDENTITY),
        (
            network.causal,
            "theory takes tokens as exchangeable and causal ones see prefixes of different length; "
            "network.causal=false has a prediction",
        ),
        (
            settings.norm == "batch",
            "theory normalizes each token by itself and batch norm divides all tokens alike; "
            "norm=layer has a prediction",
        ),
        (
            not given.unbiased,
            "the recursion of the tokens' cosines has no biases; init.sigma_b=0 has a prediction",
        ),
        (tokens < 2, "one token attends to itself alone; network.steps=2 has a prediction"),
        (
            place == "post" and not skip,
            "without a skip a norm behind the sum divides the branch alone, which is not derived; "
            "skip=identity has a prediction",
        ),
    ):
        if fails:
            return because
    squares, cosine = _embedded(given)
    try:
        flow = _flow(given, place, skip, count, tokens, float(squares.mean()), cosine)
    except InputError:
        return (
            "the logits come to vary by more than 400, where attention is an argmax; "
            "a smaller init.gain has a prediction"
        )
    log_rate, log_read = np.log(flow.rate), 0.0
    if place == "pre":
        log_rate, log_read = _each_token(flow, squares, given.network.s**4 * skip, reads)
    log_logit = 0.0
    if reads:  # the mean over tokens, of a norm's output where one stands before it
        square, cosine = 1.0 if place == "pre" else flow.square[-1], flow.cosine[-1]
        log_logit = math.log(given.maps(-1)[0][0] * square * (1 + (tokens - 1) * cosine) / tokens)
    level, *of_top, _, _ = given.top(1 if reads else tokens, log_logit)
    # What the skip alone keeps of a block's rate is exact; a norm behind it divides by 1 + a^2.
    a2 = 0.0 if settings.skip == "rezero" else given.network.a**2
    kept = skip * (given.network.s**4 / np.exp(log_rate) if place != "post" else (1 + a2) ** -2)
    error = _ERROR[place] * float(np.mean(np.clip(1 - kept, 0.0, 1.0)))
    if reads:
        log_rate = np.append(log_rate, math.log(given.maps(-1)[0][0] / tokens) + log_read)
    square = np.log(flow.square * settings.batch_size * tokens * settings.width)
    table = curve(
        given,
        top=level,
        log_rate=log_rate,
        of_top=tuple(of_top),
        error=error,
        activation_log10_norm=np.append(square, [math.nan] * reads),
    )
    return by_operation(table, given)


def _embedded(given: Inputs) -> tuple[np.ndarray, float]:
    """Quantiles of the embedded tokens' mean squares, and the mean cosine of two of a sequence."""
    x = given.examples()
    x = x.reshape(-1, *x.shape[2:])
    embedding, positions = (given.sigma2(p) for p in given.weights(0))
    square = embedding * np.square(x).mean(axis=2) + positions
    unit = x / np.sqrt(np.maximum(square, 1e-300) * x.shape[2])[..., None]
    total, own = np.square(unit.sum(axis=1)).sum(), np.square(unit).sum()
    cosine = embedding * (total - own) / (len(x) * x.shape[1] * (x.shape[1] - 1))
    each = np.quantile(square, (np.arange(32) + 0.5) / 32)
    return each * (square.mean() / each.mean()), max(float(cosine), 0.0)


def _each_token(flow: TokenFlow, squares: np.ndarray, keep: float, reads: bool):
    """Log rates of tokens that start with different squares, and the log of 1/square on top.

    A block adds as much to every token's square v and divides by its own: v' = keep v + g and a
    rate of keep + c/v, with g and c those of the mean's trajectory.
    """
    added = flow.square[1:] - keep * flow.square[:-1]
    pulled = (flow.rate - keep) * flow.square[:-1]
    v, rates = squares, []
    for g, c in zip(added, pulled, strict=True):
        rates.append(keep + c / v)
        v = keep * v + g
    weight = 1 / v if reads else np.ones_like(v)
    totals = [weight]
    for rate in reversed(rates):
        totals.append(totals[-1] * rate)
    logs = np.log(np.mean(totals, axis=1))[::-1]
    return -np.diff(logs), float(logs[-1])


def _flow(
    given: Inputs, place: str, skip: bool, count: int, tokens: int, square: float, cosine: float
) -> TokenFlow:
    settings, network = given.settings, given.settings.network
    queries, keys, values, output, wide, narrow = (w2 for w2, _ in given.maps(1))
    head = settings.width // network.heads
    scale = 1.0 if network.logit_scale == "inverse_sqrt" else 1 / head
    return token_flow(
        count,
        tokens,
        settings.width,
        cosine=cosine,
        cotangent_cosine=0.0 if given.outputs is None and settings.upstream == "gaussian" else 1.0,
        square=square,
        norm=place,
        skip=skip,
        branch_scale=0.0 if settings.skip == "rezero" else given.network.a,
        output_scale=given.network.s,
        logit_variance=scale * queries * keys,
        value_variance=values * output,
        activation=settings.activation,
        hidden_variance=wide,
        output_variance=narrow,
    )
