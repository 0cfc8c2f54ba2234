"""What ``flowlab.attach`` costs a training step of a user's transformer, beside hooks by hand.

Forward, loss, backward and a step of SGD in float32, with PyTorch's own threads: bare, with every
step measured, with every tenth, and with what users write by hand, ``.norm().item()`` in forward
and full backward hooks. All train a model of their own from the same weights.
"""

import importlib.util
from collections.abc import Callable, Iterator

import pandas as pd

from experiments.benchmarks.timing import Say, race
from flowlab.errors import InputError
from flowlab.modules.attach import attach

BARE = "torch"
BY_HAND = "hooks by hand"
EVERY = (1, 10)
OURS = {every: f"flowlab every={every}" for every in EVERY}


def rows(
    say: Say,
    blocks: int = 12,
    width: int = 256,
    heads: int = 8,
    examples: int = 8,
    tokens: int = 128,
    rounds: int = 5,
    seconds: int = 150,
) -> Iterator[dict]:
    """Rows of :func:`race`, with the bare step for its reference: a call is ten steps of training.

    ``seconds`` are about what is spent in all. Raises InputError without PyTorch.
    """
    if not importlib.util.find_spec("torch"):
        raise InputError("PyTorch must be installed for suite=attach: pip install 'flowlab[torch]'")
    forms, end = forms_of(blocks, width, heads, examples, tokens)
    steps = max(EVERY)

    def several(step: Callable) -> Callable:
        return lambda: [step() for _ in range(steps)]

    try:
        for row in race(
            {name: several(step) for name, step in forms.items()},
            rounds,
            BARE,
            say,
            always=tuple(forms),
        ):
            yield {**row, "seconds": row["seconds"] / steps, "first": row["first"] / steps}
    finally:
        end()


def report(table: pd.DataFrame) -> str:
    """What a measured step costs beyond a bare one, in per cent, with the extremes."""

    def words(row):
        low, middle, high = (100 * (row[name] - 1) for name in ("low", "ratio", "high"))
        return f"{row['form']} {middle:+.1f} % ({low:+.1f} to {high:+.1f})"

    others = table[(table["form"] != BARE) & (table["rounds"] > 0)].to_dict("records")
    return f"A step of training takes longer by: {', '.join(map(words, others))}."


def forms_of(
    blocks: int, width: int, heads: int, examples: int, tokens: int
) -> tuple[dict[str, Callable[[], float]], Callable[[], None]]:
    """By form, a function that makes one step and gives the loss; and what ends the measuring."""
    import torch
    from torch import nn

    def trainee(every: int | None = None, by_hand: bool = False):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        stack = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        model = nn.Sequential(stack, nn.LayerNorm(width), nn.Linear(width, width))
        x, y = torch.randn(2, examples, tokens, width)
        x.requires_grad_()  # full backward hooks of the first module need it
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        flow = attach(model, every=every) if every else None
        if by_hand:
            found = _by_hand(model)

        def step() -> float:
            optimizer.zero_grad()
            x.grad = None
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            if flow:
                flow.step()
            if by_hand:
                found.extend(p.grad.norm().item() for p in model.parameters())
                found.clear()
            optimizer.step()
            return loss.item()

        return step, flow

    made = {BARE: trainee(), **{OURS[every]: trainee(every) for every in EVERY}}
    made[BY_HAND] = trainee(by_hand=True)
    flows = [flow for _, flow in made.values() if flow]
    return {name: step for name, (step, _) in made.items()}, lambda: [f.detach() for f in flows]


def _by_hand(model) -> list[float]:
    """Norms of outputs, of their gradients and of those of inputs, as passes find them."""
    found: list[float] = []

    def forward(module, args, output):
        found.append((output[0] if isinstance(output, tuple) else output).norm().item())

    def backward(module, inside, outside):
        found.extend(g.norm().item() for g in (*inside, *outside) if g is not None)

    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(forward)
            module.register_full_backward_hook(backward)
    return found
