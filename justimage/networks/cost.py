"""What a network costs: parameters, and the multiply-adds of one evaluation, counted without memory for its weights."""

from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from justimage.networks.protocol import NETWORKS, name_of


class Cost(NamedTuple):
    """Of one evaluation of one sample."""

    parameters: int
    """Trainable ones."""
    multiply_adds: int
    """Of matrix products, attention among them: what the paper's tables call flops."""


def cost_of(config: Any) -> Cost:
    """The cost of a network of this configuration. Raises KeyError for one that is not in NETWORKS."""
    _, network = NETWORKS[name_of(config)]
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors without memory; tables are made by NumPy
        net = network(config).eval()
        z, t = torch.empty(1, config.channels, *config.size), torch.empty(1)
        condition = getattr(net, "condition", None)
        y = None if condition is None else condition.null(1, tuple(config.size), z.device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(z, t, y)
        return Cost(sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2)
