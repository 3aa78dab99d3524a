"""One ordinary step, looked at from outside: the gradient in each part of a network, and how far the part moves.

Nothing of the step is changed, and nothing waits for it: what is measured stays on the device until it is asked for.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from justimage.training.shards import whole_together

THIRDS = 3  # groups of neighbouring blocks

# part -> (gradient, as the optimizer gets it; weights; update), each the norm over the part
Norms = dict[str, tuple[float, float, float]]


def parts_of(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained parameters by part: the network's own modules by name, its `blocks` in thirds."""
    blocks = getattr(net, "blocks", None)
    depth = len(blocks) if isinstance(blocks, nn.ModuleList) else 0
    ends = [round(depth * k / THIRDS) for k in range(THIRDS + 1)]
    third = {i: f"blocks {a}" if b - a == 1 else f"blocks {a}-{b - 1}" for a, b in pairwise(ends) for i in range(a, b)}
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        first, _, rest = name.partition(".")
        part = third[int(rest.partition(".")[0])] if first == "blocks" and depth else first
        parts.setdefault(part, []).append(parameter)
    return parts


def watch_next(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Norms]:
    """Measure the next step that the optimizer makes; returns what gives the result, empty where none was made."""
    parts = parts_of(net)
    found: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        handle.remove()
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        with torch.no_grad():
            for name, parameters in parts.items():
                moved = [p for p in parameters if p.grad is not None and "exp_avg" in optimizer.state[p]]
                if moved:
                    update = _update([optimizer.state[p] for p in moved], groups[id(moved[0])])
                    grads = [p.grad for p in moved if p.grad is not None]
                    found[name] = torch.stack([_norm(grads), _norm([p.detach() for p in moved]), update])

    handle = optimizer.register_step_post_hook(look)

    def result() -> Norms:
        handle.remove()
        return {name: (g, w, u) for name, norms in found.items() for g, w, u in [norms.tolist()]}

    return result


def _norm(tensors: list[Tensor]) -> Tensor:
    return whole_together(nn.utils.get_total_norm(tensors))


def _update(states: list[dict[str, Tensor]], group: dict) -> Tensor:
    """The norm of what AdamW has just added to some parameters, decay aside (Algorithm 2 of arXiv 1711.05101).

    It is made of the moments, so that no copy of the weights of before is needed.
    """
    beta1, beta2 = group["betas"]
    step = states[0]["step"]
    root = (1 - beta2**step).sqrt()
    spreads = torch._foreach_sqrt([state["exp_avg_sq"] for state in states])  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(spreads, group["eps"] * root)  # pyright: ignore[reportPrivateImportUsage]
    moved = torch._foreach_div([state["exp_avg"] for state in states], spreads)  # pyright: ignore[reportPrivateImportUsage]
    return group["lr"] * root / (1 - beta1**step) * _norm(list(moved))
