"""What a model is besides its tensors, as plain values for config.json, and the model again."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from justimage.data.records import from_known, from_plain
from justimage.data.spec import DataSpec
from justimage.denoiser import SCALINGS, Denoiser, Scalings
from justimage.execution import name_of_dtype, not_finite
from justimage.networks.protocol import NETWORKS, OLDEST, NetworkClass, name_of, network_of
from justimage.process import Space
from justimage.samplers import Sampling
from justimage.weights.folder import write_folder

MEANING = ("channels", "mean", "scale", "dtype", "classes", "given")  # of the data: what values and labels stand for
ONLY_IN_TRAINING = ("dropout", "dropout_scores", "float32_attention")  # of a network: which weights it has is the same
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Meaning:
    """What a network's output means, as config.json says it under `prediction`."""

    space: Space
    t_eps: float
    noise_scale: float
    preconditioner: str


@dataclass(frozen=True)
class Description:
    """What config.json says of a model. Whose fields the architecture has depends on the network's name."""

    architecture: dict[str, Any]
    prediction: Meaning
    data: dict[str, Any] | None
    sampling: Sampling
    network: str = OLDEST
    training: dict[str, Any] | None = None
    licence: str = ""


def describe(model: Denoiser) -> dict[str, Any]:
    """Everything but the tensors, as plain values."""
    return {
        "network": name_of(model.net),
        "architecture": asdict(model.config),
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


def check_same_meaning(model: Denoiser, said: Description, source: str | Path) -> None:
    """Raises ValueError where weights are for another network than the model's, or what goes in or comes out is."""
    where = str(source)
    kind: Any = type(model.config)
    theirs: dict[str, Any] = {"network": said.network, **asdict(said.prediction)}
    ours: dict[str, Any] = {"network": name_of(model.net), **describe(model)["prediction"]}
    if theirs["network"] == ours["network"]:
        theirs |= asdict(from_plain(kind, said.architecture, where, "architecture"))
        ours |= asdict(model.config)
    spec = None if said.data is None else DataSpec.from_json(said.data, where, "data")
    for facts, data in ((theirs, spec), (ours, model.spec)):
        facts |= {name: getattr(data, name, None) for name in MEANING}
        if data is None or not data.named:  # then any names may stand for the same classes
            facts["classes"] = None
    if theirs["classes"] is None or ours["classes"] is None:
        theirs["classes"] = ours["classes"]
    for name, value in theirs.items():
        if name not in ONLY_IN_TRAINING and value != ours[name]:
            raise ValueError(f"the weights of {source} are for another model: {name} {value}, not {ours[name]}")


def restore_model(
    description: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
    *,
    network: NetworkClass | None = None,
    preconditioner: Scalings | None = None,
    where: str = "the configuration of these weights",
    allow_non_finite: bool = False,
) -> Denoiser:
    """The inverse of `describe`. Tensors become the network's own, without a second copy.

    network, preconditioner: the class and the function, where they are the user's own, which no name here restores.
    where: what the description is called in messages. Raises ValueError where the description has unknown fields or
    names, or values of other types, and where the tensors are not the network's, or not finite.
    """
    said = from_known(Description, description, where)
    config_class, network_class = network_of(said.network, network, where)
    config = from_plain(config_class, said.architecture, where, "architecture")
    spec = None if said.data is None else DataSpec.from_json(said.data, where, "data")
    net = build_network(network_class, config, empty=tensors is not None)
    model = Denoiser(
        net,
        space=said.prediction.space,
        t_eps=said.prediction.t_eps,
        noise_scale=said.prediction.noise_scale,
        preconditioner=_scalings(said.prediction.preconditioner, preconditioner),
        spec=spec,
        sampling=said.sampling,
        training=said.training,
        licence=said.licence,
    )
    if tensors is not None:
        assign_tensors(net, tensors, allow_non_finite=allow_non_finite, where=where)
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


def assign_tensors(
    net: nn.Module, tensors: dict[str, Tensor], *, allow_non_finite: bool = False, where: str = "these weights"
) -> None:
    """Give a network built on the meta device its tensors, as numbers of the network's own type.

    where: what holds them, for messages. Raises ValueError that lists what does not fit, and names a tensor with values
    that are not finite.
    """
    kinds = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    wrong = [f"missing: {name} {expected[name]}" for name in expected if name not in tensors]
    wrong += [f"unknown: {name} {tuple(tensors[name].shape)}" for name in tensors if name not in expected]
    wrong += [
        f"another shape: {name} {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    wrong += [
        f"another type: {name} {tensors[name].dtype}, not {kind}"
        for name, kind in kinds.items()
        if name in tensors and not _convertible(tensors[name], kind)
    ]
    if wrong:
        shown = "\n  ".join(wrong[:20]) + (f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise ValueError(f"the tensors of {where} are not this network's:\n  {shown}")
    tensors = {name: tensor.to(kinds[name]) for name, tensor in tensors.items()}
    if not allow_non_finite:
        _check_finite(net, tensors, where)
    net.load_state_dict(tensors, assign=True)


def _convertible(tensor: Tensor, kind: torch.dtype) -> bool:
    """Whether a tensor can stand for one of this type: floating-point numbers for each other, others for themselves."""
    if tensor.layout is not torch.strided:
        return False
    return tensor.dtype in FLOATS if kind.is_floating_point else tensor.dtype == kind


def _check_finite(net: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Raises ValueError where a weight is NaN or infinite, which would draw black samples.

    Infinite numbers in a buffer, such as a mask, may be meant where the network is the user's own.
    """
    own = name_of(net) not in NETWORKS
    learned = {name for name, _ in net.named_parameters()}
    bad = not_finite({name: each for name, each in tensors.items() if name in learned or not own})
    bad += [name for name, each in tensors.items() if own and name not in learned and bool(each.isnan().any())]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(
            f"{where}: numbers that are not finite in {bad[0]}{more}: they come from a training that failed, and draw "
            "nothing. To look at them all the same: load(..., allow_non_finite=True), or --allow-non-finite"
        )


def save(model: Denoiser, folder: Path) -> None:
    """Write a weights folder. Raises ValueError where the parameters are no longer float32."""
    check_kept(model.net)
    write_folder(folder, model.net.state_dict(), describe(model))


def check_kept(net: nn.Module) -> None:
    """Raises ValueError where the parameters are no longer float32."""
    kept = {name_of_dtype(p.dtype) for p in net.parameters()}
    if kept - {"float32"}:
        raise ValueError(
            f"the parameters are {', '.join(sorted(kept))}, and saving them would lose precision; "
            "load the model with dtype=torch.float32"
        )
