"""Features fitted to the reference data: they need no download, and exist for any number of channels and axes.

A small convolutional network learns the classes of the data or, where there are none, to rebuild a sample from its
features. How well it does on data that it never saw is part of every number made with it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from justimage.data.held_out import Part
from justimage.data.loader import batches, model_values, order, read
from justimage.data.records import from_plain, read_json
from justimage.data.spec import DataSpec, Source
from justimage.disk.cache import cache_folder
from justimage.disk.tensors import read_tensors, sum_of, write_tensors
from justimage.disk.whole import whole, write_text
from justimage.evaluation.encoder import Decoder, Encoder, initialise, shifted
from justimage.execution import to_device
from justimage.randomness import Purpose, key

VERSION = 1  # of the network and its training; part of the name
FEWEST = 20  # samples that something can be learnt from
WARM_UP = 0.1  # part of the training in which the learning rate rises
REPORTS = 100

Progress = Callable[[int, int, str], None]
"""Called with what is done, how much there is, and what it is."""


@dataclass(frozen=True)
class Fit:
    """How features are fitted. Raises ValueError for numbers that cannot be meant."""

    features: int = 64
    width: int = 32
    """Channels behind the first convolution; a multiple of 8. Deeper layers have up to four times as many."""
    epochs: int = 10
    """How often each sample is seen, unless that is fewer than `least` samples in all, or more than `most`."""
    least: int = 25_000
    most: int = 160_000
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    held_out: float = 0.1
    """Share of the data that training never sees, of which at most `most_held_out` samples are looked at."""
    most_held_out: int = 5_000
    seed: int = 0

    def __post_init__(self) -> None:
        whole_numbers = {
            name: getattr(self, name)
            for name in ("features", "width", "epochs", "least", "most", "batch_size", "most_held_out")
        }
        for name, value in whole_numbers.items():
            if value < 1:
                raise ValueError(f"{name} of fitted features is {value}; it must be at least 1")
        if self.width % 8:
            raise ValueError(f"width of fitted features is {self.width}; it must be a multiple of 8")
        if not 0 < self.held_out < 1 or not 0 < self.lr < 1 or not 0 <= self.weight_decay < 1:
            raise ValueError(
                f"held_out ({self.held_out}), lr ({self.lr}) and weight_decay ({self.weight_decay}) of fitted features "
                "must be between 0 and 1"
            )

    def steps(self, samples: int) -> int:
        """Steps of training for so many samples."""
        return -(-min(self.most, max(self.least, self.epochs * samples)) // self.batch_size)


class FittedNet(nn.Module):
    """The encoder, and what it is trained with: a linear map to the classes, or a decoder."""

    unit: Tensor  # what the features are divided by, ()

    def __init__(self, spec: DataSpec, config: Fit):
        super().__init__()
        shape = len(spec.channels), spec.size, config.width, config.features
        self.encoder = Encoder(*shape)
        self.classes = len(spec.classes) if len(spec.classes) >= 2 else 0
        self.head = nn.Linear(config.features, self.classes) if self.classes else Decoder(*shape)
        self.register_buffer("unit", torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Model values (B, C, *S) -> features (B, D), and logits (B, K) or the sample rebuilt (B, C, *reduced)."""
        features = self.encoder(x)
        return features, self.head(F.relu(features) if self.classes else features)

    def loss(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Mean over the batch of the cross-entropy, or of the squared error."""
        _, found = self(x)
        return F.mse_loss(found, self.encoder.reduce(x)) if labels is None else F.cross_entropy(found, labels)


class Fitted:
    """Fitted features of raw samples: Features with logits where the data have classes.

    They are scaled by one number, so that over held-out data their variance is 1 on average.
    """

    def __init__(self, net: FittedNet, spec: DataSpec, name: str, facts: dict[str, Any], device: torch.device):
        self.net, self.spec, self.name, self.facts = net.to(device).eval().requires_grad_(False), spec, name, facts
        self.size, self.classes, self.device = net.encoder.out.out_features, net.classes, device

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError where samples are not of the shape and type that the features were fitted to."""
        if (spec.shape, spec.dtype) != (self.spec.shape, self.spec.dtype):
            raise ValueError(
                f"{self.name} was fitted to samples {self.spec.shape} of {self.spec.dtype}, and these are {spec.shape} "
                f"of {spec.dtype}; give the reference in the size and type of the samples"
            )

    @torch.no_grad()
    def __call__(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw values (B, C, *S) -> features (B, D) float32, and logits (B, K) or None, on the extractor's device."""
        features, found = self.net(self.spec.encode(raw.to(self.device)))
        return features / self.net.unit, found if self.classes else None


def fit_features(
    source: Source,
    config: Fit | None = None,
    *,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Features fitted to the data, or found in the cache from the last time.

    A function of the data and the recipe, which its name stands for. Samples are told apart by their index: of random
    crops and neighbouring times, the held-out ones are not independent of the others. Raises ValueError for data that
    can only be read in one order, that are too few, or on which training diverges; UnreadableSample for damaged ones.
    """
    config, device = config or Fit(), torch.device(device)
    if source.indexed is not True:
        raise ValueError("features can be fitted only to data that can be read in any order; a stream cannot: pack it")
    if len(source) < FEWEST:
        raise ValueError(f"the data have {len(source)} samples; features are fitted to at least {FEWEST}")
    data = hashlib.sha256(f"{source.content()} {source.spec.text()}".encode()).hexdigest()[:16]
    spec = replace(source.spec, origin=None, given=())  # what the network depends on
    name = _name(data, spec, config)
    with contextlib.suppress(ValueError):  # there is none, or a damaged one
        return load_fitted(name, device=device)
    held = min(config.most_held_out, len(source) - 1, max(1, round(config.held_out * len(source))))
    seen = min(len(source) - held, config.most)
    shuffled = order(config.seed, range(held + seen), len(source))
    net = _train(Part(source, shuffled[held:]), spec, config, device, progress)
    facts = {
        "data": source.describe(),
        "images_seen": config.steps(seen) * config.batch_size,
        **_examine(net, Part(source, shuffled[:held]), spec, config, device),
        "weights": sum_of(net.state_dict()),
    }
    with contextlib.suppress(OSError):  # no writable cache: it is fitted again next time
        _keep(net, name, {"name": name, "data": data, "spec": asdict(spec), "recipe": asdict(config), "facts": facts})
    return Fitted(net, spec, name, facts, device)


def load_fitted(name: str, *, device: torch.device | str = "cpu") -> Fitted:
    """Features that were fitted before, from the cache.

    Raises ValueError where there are none of that name, or they are not what the name stands for.
    """
    folder = cache_folder() / "features" / name
    kept = read_json(folder / "facts.json")
    try:
        spec = DataSpec.from_json(kept["spec"], str(folder / "facts.json"), "spec")
        config = from_plain(Fit, kept["recipe"], str(folder / "facts.json"), "recipe")
        facts, data = dict(kept["facts"]), kept["data"]
        tensors = read_tensors(folder / "model.safetensors")
        if _name(data, spec, config) != name or facts["weights"] != sum_of(tensors):
            raise ValueError(f"{folder} does not hold {name}; remove it")
        net = _empty(spec, config)
        net.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold fitted features ({error}); remove it") from error
    return Fitted(net, spec, name, facts, torch.device(device))


def _name(data: str, spec: DataSpec, config: Fit) -> str:
    """The name of the features: a hash of the data, of how they are mirrored, of the recipe and of this code."""
    what = json.dumps([data, spec.text(), spec.mirror, asdict(config), VERSION], sort_keys=True)
    return f"fit-{config.features}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def _empty(spec: DataSpec, config: Fit) -> FittedNet:
    """The network without weights: making them would draw from torch's own generator."""
    with torch.device("meta"):
        return FittedNet(spec, config)


def _keep(net: FittedNet, name: str, kept: dict[str, Any]) -> None:
    with whole(cache_folder() / "features" / name) as folder:
        folder.mkdir()
        write_tensors(folder / "model.safetensors", net.state_dict())
        write_text(folder / "facts.json", json.dumps(kept, indent=1) + "\n")


def _train(source: Source, spec: DataSpec, config: Fit, device: torch.device, progress: Progress | None) -> FittedNet:
    """AdamW with a learning rate that rises and falls linearly. Raises ValueError where the loss is not finite."""
    net = _empty(spec, config).to_empty(device="cpu")
    net.unit.fill_(1.0)
    initialise(net, torch.Generator().manual_seed(key(config.seed, Purpose.WEIGHTS, 0)))
    net.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps = config.steps(len(source))
    rise = max(1, round(WARM_UP * steps))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))
    )
    text = "fitting features: " + ("a classifier" if net.classes else "an autoencoder")
    workers = min(8, os.cpu_count() or 1)
    endless = batches(source, seed=config.seed, start=0, batch_size=config.batch_size, workers=workers)
    shifts = torch.Generator().manual_seed(key(config.seed, Purpose.FLIP, 0))
    for step, batch in zip(range(steps), endless, strict=False):
        raw = to_device(batch.raw, device)
        x, _ = model_values(raw, {}, spec, seed=config.seed, positions=batch.positions, mirror=spec.mirror is not None)
        labels = to_device(batch.y["labels"], device) if net.classes else None
        loss = net.loss(x if labels is None else shifted(x, shifts), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step == steps - 1 or step % max(1, steps // REPORTS) == 0:
            if not isfinite(loss.item()):
                raise ValueError(
                    f"fitting features diverged: the loss is {loss.item()} after {step + 1} steps; are all values "
                    "finite, and do mean and scale fit them?"
                )
            if progress is not None:
                progress((step + 1) * config.batch_size, steps * config.batch_size, text)
    endless.close()
    return net.eval()


@torch.no_grad()
def _examine(net: FittedNet, held_out: Source, spec: DataSpec, config: Fit, device: torch.device) -> dict[str, Any]:
    """What the network knows of data that it never saw, beside what is had by chance; sets the unit of its features.

    Accuracy, and the share of the commonest class; or the explained share of the variance about the mean sample, of
    which a constant explains none.
    """
    features, labels, right, errors = [], [], 0, 0.0
    total = squares = torch.zeros((), dtype=torch.float64)  # on the CPU, as some accelerators have no float64
    for start in range(0, len(held_out), config.batch_size):
        batch = read(held_out, range(start, min(start + config.batch_size, len(held_out))), config.seed)
        x = spec.encode(to_device(batch.raw, device))
        these, found = net(x)
        features.append(these.cpu().double())
        if net.classes:
            labels.append(batch.y["labels"])
            right += int((found.argmax(1).cpu() == labels[-1]).sum())
        else:
            cells = net.encoder.reduce(x).cpu().double()
            errors += float((found.cpu() - cells).square().sum())
            total, squares = total + cells.sum(0), squares + cells.square().sum(0)
    seen = torch.cat(features)
    net.unit.copy_(seen.var(0, correction=0).mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny))
    if net.classes:
        chance = int(torch.cat(labels).bincount().max()) / len(seen)
        return {"held_out": len(seen), "held_out_accuracy": right / len(seen), "chance": chance}
    variance = float((squares - total.square() / len(seen)).sum())
    return {"held_out": len(seen), "held_out_explained_variance": 1 - errors / variance, "chance": 0.0}
