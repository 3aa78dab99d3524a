"""What is measured of a sample: a few numbers that a network makes of it, by which samples are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from justimage.data.spec import DataSpec, Source, StreamSource
from justimage.evaluation.fitted import Fit, Progress, fit_features
from justimage.evaluation.pretrained import clip, dinov2, inception


class Features(Protocol):
    """Features of raw samples. Those of one sample do not depend on the others of its batch, beyond rounding."""

    name: str
    """Tells numbers made with it from those made with another: what it is, its size, and a hash of its weights."""
    size: int
    """D."""
    classes: int
    """K of the logits; 0 where there are none."""
    facts: dict[str, Any]
    """What goes beside every number made with it, as JSON holds it."""

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError where it cannot look at such samples."""
        ...

    def __call__(self, raw: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Raw values (B, C, *S), on any device -> features (B, D) float32, and logits (B, K) float32 or None."""
        ...


class ModuleFeatures:
    """Features by any module that takes model values (B, C, *S) and returns (B, D), or (B, D, ...) to be averaged.

    name: by which its numbers are known; give another name to other weights. size: D, where a trial on one sample is
    not wanted. Raises ValueError where the module returns anything else.
    """

    classes = 0

    def __init__(
        self,
        module: nn.Module,
        name: str,
        spec: DataSpec,
        size: int | None = None,
        *,
        device: torch.device | str = "cpu",
        facts: dict[str, Any] | None = None,
    ):
        if not name:
            raise ValueError("features need a name, by which the numbers made with them are known")
        self.module, self.spec, self.device = module.to(device).eval(), spec, torch.device(device)
        self.name, self.facts = name, dict(facts or {})
        self.size = size or self(spec.decode(torch.zeros(1, *spec.shape)))[0].shape[1]

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError where samples are not of the shape and type that it was made for."""
        if (spec.shape, spec.dtype) != (self.spec.shape, self.spec.dtype):
            raise ValueError(
                f"{self.name} looks at samples {self.spec.shape} of {self.spec.dtype}, and these are {spec.shape} of "
                f"{spec.dtype}"
            )

    @torch.no_grad()
    def __call__(self, raw: Tensor, /) -> tuple[Tensor, None]:
        """Raw values (B, C, *S) -> features (B, D) float32 on the module's device, and no logits."""
        found = self.module(self.spec.encode(raw.to(self.device)))
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(raw):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.name} returns {what} for {len(raw)} samples; (B, D) or (B, D, ...) is needed")
        return (found if found.ndim == 2 else found.flatten(2).mean(2)).float(), None


def resize(raw: Tensor, size: Sequence[int]) -> Tensor:
    """8-bit images (B, C, H, W) at another size, (B, C, *size) uint8: linear, averaging where they become smaller."""
    found = F.interpolate(raw.float(), tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return found.round_().clamp_(0, 255).to(torch.uint8)


class Resizing:
    """Features of images at another size than theirs: images of several sizes, seen by the same network.

    of: what looks at images of a `size`. Numbers are known under a name of their own, as a resized image is another.
    """

    def __init__(self, of: Features, size: Sequence[int]):
        self.of, self.image_size, self.size, self.classes = of, tuple(size), of.size, of.classes
        self.name, self.facts = f"{of.name}-at-{'x'.join(map(str, size))}", of.facts

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError where samples are no 8-bit images, or what looks at them refuses them at its size."""
        if not spec.image:
            raise ValueError(f"{self.name} resizes images, and these are {spec.shape} of {spec.dtype}")
        self.of.check(replace(spec, size=self.image_size))

    def __call__(self, raw: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Raw images (B, C, H, W) uint8 -> features (B, D), and logits (B, K) or None."""
        return self.of(raw if raw.shape[2:] == self.image_size else resize(raw, self.image_size))


@dataclass(frozen=True)
class Choice:
    """What is needed to open features by name."""

    reference: Source | StreamSource | None = None
    """The data that `fit` is fitted to."""
    weights: Path | None = None
    """The file of the weights of the others."""
    fit: Fit = field(default_factory=Fit)
    device: torch.device | str = "cpu"
    progress: Progress | None = None


def _fit(choice: Choice) -> Features:
    if choice.weights is not None:
        raise ValueError(f"features are fitted to the data, without weights of others; {choice.weights} is not used")
    if choice.reference is None:
        raise ValueError("there are no data to fit features to; give them with --data, or choose other --features")
    if choice.reference.indexed is not True:
        raise ValueError("features can be fitted only to data that can be read in any order, and this is a stream")
    return fit_features(choice.reference, choice.fit, progress=choice.progress, device=choice.device)


EXTRACTORS: dict[str, Callable[[Choice], Features]] = {
    "fit": _fit,
    "inception": lambda choice: inception(choice.weights, device=choice.device),
    "dinov2": lambda choice: dinov2(choice.weights, device=choice.device),
    "clip": lambda choice: clip(choice.weights, device=choice.device),
}


def open_features(
    name: str,
    reference: Source | StreamSource | None = None,
    *,
    weights: Path | None = None,
    fit: Fit | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Features:
    """Features by the name of EXTRACTORS, ready for the first sample.

    reference: what `fit` is fitted to. Raises ValueError for another name, and where they cannot be had.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"there are no features {name!r}; there are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](Choice(reference, weights, fit or Fit(), device, progress))
