"""What a network makes of times and conditions alone, for a whole time grid at once.

Modulations (adaLN) may hold a third of all weights. With small batches each evaluation waits for them to come from
memory, for the sake of a few rows; the rows of a whole grid wait once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from justimage.execution import to_device
from justimage.process import Prediction
from justimage.samplers import Predict

Model = Callable[[Tensor, Tensor, Any], Prediction]
FEW = 16  # rows; with more, the products of the tokens take so long that these weights no longer matter
# Numbers of the condition for a whole grid: labels and vectors stay far below, planes may not. And of the table, which
# may also have as many as the network has weights: usual grids stay far below, a thousand steps may not.
MOST_NUMBERS = 10_000_000
TOLD, ROW = "told", "row"  # what `net.told` gives, as forward takes it; and where a sample stands in the table of them


def told_ahead(model: Any, y: Any, null: Any, times: Tensor, guide: Callable[[Any, Any, Any], Predict]) -> Predict:
    """guide(model, y, null), where the network finds what depends on time and condition alone in a table.

    y, null: values of the condition for B samples, or None. times (N,): those of the grid, on the CPU; at any other the
    network is asked as ever. So it is for networks without `told` (justimage.networks.protocol), for large batches, and
    where the table would take more memory than the network itself.
    """
    tell = getattr(getattr(model, "net", None), "told", None)
    values = [each for each in (y, null) if each is not None]
    if tell is None or not values or not all(isinstance(each, dict) for each in values):
        return guide(model, y, null)
    both = pytree.tree_map(lambda *each: torch.cat(each), *values)
    first, numbers = next(iter(both.values())), sum(each.numel() for each in both.values())
    if len(first) > FEW or numbers * len(times) > MOST_NUMBERS:
        return guide(model, y, null)
    rows, device = torch.arange(len(first), device=first.device), first.device
    moments = to_device(times.float(), device).repeat_interleave(len(rows))
    everything = {name: each.repeat(len(times), *[1] * (each.ndim - 1)) for name, each in both.items()}
    a_row = tell(moments[:0], {name: each[:0] for name, each in both.items()}).shape[-1]
    if len(moments) * a_row > max(MOST_NUMBERS, sum(each.numel() for each in model.net.parameters())):
        return guide(model, y, null)
    table = dict(zip(times.tolist(), tell(moments, everything).split(len(rows)), strict=True))
    known: Tensor | None = None  # the table's part for the time that is asked for now

    def informed(z: Tensor, t: Tensor, y: dict[str, Tensor]) -> Prediction:
        given = {name: each for name, each in y.items() if name != ROW}
        return model(z, t, given if known is None else given | {TOLD: known[y[ROW]]})

    numbered = [each | {ROW: part} for each, part in zip(values, rows.chunk(len(values)), strict=True)]
    inner = guide(informed, numbered[0] if y is not None else None, numbered[-1] if null is not None else None)

    def predict(z: Tensor, t: Tensor) -> Prediction:
        nonlocal known
        known = table.get(float(t))
        return inner(z, t)

    return predict
