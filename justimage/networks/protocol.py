"""What a network is, and those that configurations on disk refer to by name.

Any nn.Module is a network that maps z (B, C, *S), t (B,) and y to (B, C, *S), and has a frozen `config` with `size`
and `channels`. Its class names the type of `config` as `Config`. Seven more things are used where a network has them:

    condition               what y is (see networks.conditions); without it the network is unconditional
    initialise(generator)   fills every parameter and buffer, so that the weights are a function of the seed
    blocks                  the nn.ModuleList that is compiled and checkpointed
    told(t, y)              (B, N), all that blocks compute from time and condition alone; forward takes it as y["told"]
    largest(size)           numbers in the largest tensor that one sample takes on its way; by it a CPU splits batches
    beside                  the names of values that it gives on the way to its output, a tuple
    axes                    which axis of which tensor counts something of the data: {name: (what, axis)}

A network with names in `beside` gives the values in training mode: (raw, {name: tensor}), each tensor with the batch
first; the prediction carries them to the loss. In evaluation mode it gives raw alone and computes nothing else, so that
sampling pays for none of them. One name has a meaning here: "logits" (B, num_classes), of an auxiliary classifier that
does not see the labels (`Training.classification`).

Of `axes`, "classes" has an entry for each class in the order of the labels, and perhaps a last one for none; "patch"
one for each number of a patch, ordered (C, *patch), and perhaps more for planes beside the channels; "planes" only
these. To a "shift", the row of the class is added wherever it is used. By them, a network starts from the weights of
one for other classes, channels or patches (weights.transfer).

A module in a network that draws random numbers in training, and has an attribute `sample_keys`, finds there two words
for each sample, (B, 2) int32, during the forward and the backward pass; outside of training it is None
(networks.dropout). What it draws from them is the same for any number of processes and any microbatch. Plain nn.Dropout
works too: resuming then repeats its masks, other numbers of processes do not.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

from justimage.networks.dit import DiT, DiTConfig
from justimage.networks.jit import JiT, JiTConfig
from justimage.networks.mlp import MLPConfig, ToyMLP


@runtime_checkable
class NetworkConfig(Protocol):
    """What the rest of the library asks of a network's frozen configuration."""

    @property
    def size(self) -> tuple[int, ...]: ...

    @property
    def channels(self) -> int: ...

    if not TYPE_CHECKING:

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            """The command line asks whether a class is such a configuration: any dataclass with these fields is."""
            return {"size", "channels"} <= set(getattr(other, "__dataclass_fields__", {}))


NetworkClass = Callable[[Any], nn.Module]  # a class of networks with `Config`, or a function that has it

NETWORKS: dict[str, tuple[type, NetworkClass]] = {
    "jit": (JiTConfig, JiT),
    "mlp": (MLPConfig, ToyMLP),
    "dit": (DiTConfig, DiT),
}
OLDEST = "jit"  # the network of older configurations, which name none


def name_of(net_or_config: Any) -> str:
    """The name of a network, or of a configuration, in NETWORKS; for one that is not there, the name of its class."""
    for name, (config, network) in NETWORKS.items():
        if type(net_or_config) in (config, network):
            return name
    return type(net_or_config).__name__


def network_of(name: str, given: NetworkClass | None = None, where: str = "") -> tuple[type, NetworkClass]:
    """(config, network) of a name, or those of a class that the user gives. Raises ValueError where there is none.

    where: what names it, for the message.
    """
    if given is not None:
        config = getattr(given, "Config", None)
        if config is None:
            called = getattr(given, "__name__", str(given))
            raise ValueError(f"{called} does not say what its configuration is; set {called}.Config")
        return config, given
    if name not in NETWORKS:
        raise ValueError(
            f"{where}{': ' if where else ''}the network {name!r} is none of {', '.join(NETWORKS)}; if it is yours, "
            f"give its class: load(..., network={name})"
        )
    return NETWORKS[name]
