"""A family of models, ``make(depth)``, passed forward and back for every depth and seed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from flowlab.modules.attach import attach
from flowlab.modules.blocks import repeated
from flowlab.modules.chains import chain_of
from flowlab.modules.choosing import Choice, choose
from flowlab.modules.feeding import Loss, Make, batch_of, inputs_of, loss_of, made
from flowlab.modules.recognition import predicted
from flowlab.modules.table import joined


def measured(
    make: Make,
    depths: Sequence[int],
    seeds: range,
    batch: Any,
    loss: Loss,
    name: str | None,
    axes: Mapping[str, Any],
    watch: Callable[[int, int], None] | None,
    *,
    modules: Choice,
    blocks: str | None,
    exponents: bool,
) -> tuple[dict[int, pd.DataFrame], dict[int, pd.DataFrame]]:
    """By depth, the table of all seeds, and theory's prediction.

    PyTorch's global streams are put back where they stood.
    """
    tables, predictions, done = {}, {}, 0
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        first = {depth: made(make, depth, seeds[0]) for depth in depths}
        found = repeated(first, blocks)
        del first
        for depth in depths:
            parts, drawn, links = [], [], ""
            for seed in seeds:
                model, fed = made(make, depth, seed), batch_of(batch, seed)
                chosen = {*choose(model, modules), *found[depth]}
                settings = {**axes, "depth": depth}
                with attach(
                    model,
                    lambda path, _, chosen=chosen: path in chosen,
                    exponents=exponents,
                    seed=seed,
                    name=name,
                    settings=settings,
                ) as flow:
                    loss_of(model, fed, loss).backward()
                parts.append(flow.table)
                model.zero_grad()
                links = links if drawn else chain_of(model, inputs_of(fed))
                if not isinstance(links, str) or not drawn:  # theory reads chains alone
                    drawn.append((model, fed))
                done += 1
                if watch:
                    watch(done, len(depths) * len(seeds))
            tables[depth] = joined([_numbered(of, found[depth]) for of in parts])
            predictions[depth] = predicted(links, drawn, tables[depth], loss)
    return tables, predictions


def _numbered(table: pd.DataFrame, blocks: list[str]) -> pd.DataFrame:
    """The table with each row's ``block``, numbered in the order in which blocks ran."""
    own = table[table["module"].isin(blocks)].groupby("module")["layer"].min().sort_values()
    number = {path: k for k, path in enumerate(own.index, 1)}
    of_module = {}
    for path in table["module"].unique():
        parts = path.split(".")
        around = (".".join(parts[:k]) for k in range(len(parts), 0, -1))
        of_module[path] = next((number[at] for at in around if at in number), None)
    block = pd.array([of_module[path] for path in table["module"]], dtype="Int64")
    return table.assign(block=block)
