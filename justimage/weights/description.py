"""What a model is besides its tensors, as plain values for config.json, and the model again."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from justimage.data.spec import DataSpec
from justimage.denoiser import SCALINGS, Denoiser, Scalings
from justimage.networks.protocol import NETWORKS, OLDEST, NetworkClass, architecture, name_of, network_of
from justimage.samplers import Sampling
from justimage.weights.folder import write_folder


def describe(model: Denoiser) -> dict[str, Any]:
    """Everything but the tensors, as plain values."""
    return {
        "network": name_of(model.net),
        "architecture": architecture(model.config),
        "prediction": {
            "space": model.space,
            "t_eps": model.t_eps,
            "noise_scale": model.noise_scale,
            "preconditioner": model.preconditioner,
        },
        "data": None if model.spec is None else asdict(model.spec),
        "sampling": asdict(model.sampling),
        "training": model.training_summary,
        "licence": model.licence,
    }


def restore_model(
    description: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
    *,
    network: NetworkClass | None = None,
    preconditioner: Scalings | None = None,
) -> Denoiser:
    """The inverse of `describe`. Tensors become the network's own, without a second copy.

    network, preconditioner: the class and the function, where they are the user's own, which no name here restores.
    Raises ValueError where the description has unknown fields or names, or the tensors are not the
    network's.
    """
    try:
        config_class, network_class = network_of(description.get("network", OLDEST), network)
        prediction = dict(description["prediction"])
        prediction["preconditioner"] = _scalings(prediction["preconditioner"], preconditioner)
        net = build_network(
            network_class, config_class(**with_tuples(description["architecture"])), empty=tensors is not None
        )
        model = Denoiser(
            net,
            **prediction,
            spec=None if description["data"] is None else DataSpec.from_json(description["data"]),
            sampling=Sampling(**with_tuples(description["sampling"])),
            training=description.get("training"),
            licence=description.get("licence", ""),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"the configuration of these weights is not one of this version: {error}") from error
    if tensors is not None:
        assign_tensors(net, tensors)
    return model


def build_network(network: NetworkClass, config: Any, *, empty: bool, seed: int = 0) -> nn.Module:
    """A network; empty: without memory for its weights, which are about to be loaded or drawn, if it is one of ours.

    A network of the user's own may fill buffers when it is made, so it is made for real; its weights are then a
    function of the seed, as torch draws them.
    """
    if empty and any(network is ours for _, ours in NETWORKS.values()):
        with torch.device("meta"):
            return network(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(config)


def _scalings(name: str, given: Scalings | None) -> Any:
    if given is not None:
        own = getattr(given, "__name__", "one without a name")
        if own != name:
            raise ValueError(f"these weights were trained with the pre-conditioner {name!r}, not {own!r}")
        return given
    if name not in SCALINGS:
        raise ValueError(
            f"the pre-conditioner {name!r} is none of {', '.join(SCALINGS)}; if it is yours, give the function: "
            f"load(..., preconditioner={name})"
        )
    return name


def with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; the frozen dataclasses hold tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def assign_tensors(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a network built on the meta device its tensors. Raises ValueError that lists what does not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    wrong = [f"missing: {name} {expected[name]}" for name in expected if name not in tensors]
    wrong += [f"unknown: {name} {tuple(tensors[name].shape)}" for name in tensors if name not in expected]
    wrong += [
        f"another shape: {name} {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if wrong:
        shown = "\n  ".join(wrong[:20]) + (f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise ValueError(f"these tensors are not this network's:\n  {shown}")
    net.load_state_dict(tensors, assign=True)


def save(model: Denoiser, folder: Path) -> None:
    """Write a weights folder. Raises ValueError where the parameters are no longer float32."""
    kept = {str(p.dtype).removeprefix("torch.") for p in model.net.parameters()}
    if kept - {"float32"}:
        raise ValueError(
            f"the parameters are {', '.join(sorted(kept))}, and saving them would lose precision; "
            "load the model with dtype=torch.float32"
        )
    write_folder(folder, model.net.state_dict(), describe(model))
