"""Twins of embeddings and positions."""

import numpy as np

from flowlab.claims.twins.twin import Instance, Timed, twin
from flowlab.layers.embedding import PositionalEncoding, TokenEmbedding

_WORDS = 1000
_TOKENS = (3, 5, 6)


def _sinusoids(tokens: int, features: int) -> np.ndarray:
    """Vaswani et al. 2017, section 3.5."""
    angles = np.arange(tokens)[:, None] * 10000.0 ** (-2 * (np.arange(features) // 2) / features)
    return np.where(np.arange(features) % 2, np.cos(angles), np.sin(angles))


def _positions_in_jax(jax, layer, x, p):
    learned = layer.kind == "learned"
    return x + (p["P"][: x.shape[1]] if learned else _sinusoids(*x.shape[1:]).astype(x.dtype))


def _positions_in_torch(torch, layer, x, p):
    if layer.kind == "learned":
        return x + p["P"].narrow(0, 0, x.shape[1])
    return x + torch.from_numpy(_sinusoids(*x.shape[1:])).to(x.dtype)


def _embeddings(torch, layer, x, p):
    """The networks' tables as one."""
    first = layer.vocabulary * torch.arange(len(x))[:, None, None]
    return torch.nn.functional.embedding(x.long() + first, p["W"].flatten(0, 1))


def _positions_at_once(torch, layer, x, p):
    """Of learned positions."""
    return x + p["P"][:, None, : x.shape[2]]


twin(
    TokenEmbedding,
    jax=lambda jax, layer, x, p: p["W"][x.astype(int)],
    torch=lambda torch, layer, x, p: torch.nn.functional.embedding(x.long(), p["W"]),
    ensemble=_embeddings,
    small={
        "token_embedding": Instance(
            TokenEmbedding(3, 2),
            (2, 4),
            # Whole numbers that differences do not move to another token; the law of examples puts
            # 1 - 3x in the place of the second.
            inputs=np.array([[[0, 1, 1, 0], [0, 0, 0, 0]], [[1, 0, 0, 1], [0, 0, 0, 0]]], float),
        )
    },
    timed={
        "embedding": Timed(
            lambda shape: TokenEmbedding(_WORDS, 128), ((32, 64), (32, 256)), (2, 5), _WORDS
        )
    },
)
twin(
    PositionalEncoding,
    jax=_positions_in_jax,
    torch=_positions_in_torch,
    ensemble=_positions_at_once,
    small={
        "positional_encoding": Instance(PositionalEncoding(6), _TOKENS),
        "positional_encoding (sinusoidal)": Instance(PositionalEncoding(5, "sinusoidal"), _TOKENS),
    },
    timed={
        "positional": Timed(
            lambda shape: PositionalEncoding(shape[1]),
            ((16, 32, 128), (8, 128, 256)),
            (2, 3, 8),
        )
    },
)
