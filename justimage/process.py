"""The process: one straight line between noise and data, and everything that follows from it.

    z = t x + (1 - t) eps          Eq. 1 of arXiv 2511.13720;  t = 0 is noise, t = 1 is data
    v = dz/dt = x - eps            Eq. 2

Two equations in four unknowns: whoever knows z, t and one of x, eps, v knows all three. A network may
therefore predict any of them, and its error may be measured in any of them: nine combinations (Table 1),
no two of them the same. This module is the only place that knows how the three are related.

All tensors are (B, C, *S) with any number of spatial axes S; t is (B,).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Space = Literal["x", "eps", "v"]
SPACES: tuple[Space, ...] = get_args(Space)


def expand(t: Tensor, like: Tensor) -> Tensor:
    """t (B,) -> (B, 1, ..., 1), ready to multiply `like` (B, ...).

    Raises ValueError for any other shape: a t that broadcasts along the wrong axis (batch equal to width,
    say) would silently give wrong numbers.
    """
    if t.shape != like.shape[:1]:
        raise ValueError(f"t must have shape ({like.shape[0]},), one time for each sample, not {tuple(t.shape)}")
    return t.view(-1, *[1] * (like.ndim - 1))


def diffuse(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The state z = t x + (1 - t) eps (Eq. 1, arXiv 2511.13720). x, eps (B, C, *S), t (B,) -> (B, C, *S)."""
    t = expand(t, x)
    return t * x + (1 - t) * eps


def velocity(x: Tensor, eps: Tensor) -> Tensor:
    """The velocity v = dz/dt = x - eps (Eq. 2, arXiv 2511.13720). (B, C, *S) -> (B, C, *S)."""
    return x - eps


@dataclass(frozen=True)
class Prediction:
    """A statement about the clean data behind the state z at time t, readable in any space.

    value, z: (B, C, *S); t: (B,); space: what `value` is. Divisions by 1 - t and by t are floored at t_eps
    (section 4.3 of arXiv 2511.13720; the paper states it for 1 - t, and here it guards t in the same way). beside:
    what else was said on the way to it, tensors by name with the batch first; usually nothing.
    """

    value: Tensor
    z: Tensor
    t: Tensor
    space: Space
    t_eps: float = 0.05
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ValueError(f"no space is called {self.space!r}; there are {', '.join(SPACES)}")

    def to(self, space: Space) -> Tensor:
        """The prediction as x, eps or v, (B, C, *S): the nine conversions of Table 1, arXiv 2511.13720.

        From x to v it is Eq. 5 there, v = (x - z) / (1 - t).
        """
        value, z = self.value, self.z
        t = expand(self.t, z)
        from_noise, to_data = t.clamp_min(self.t_eps), (1 - t).clamp_min(self.t_eps)
        match self.space, space:
            case ("x", "x") | ("eps", "eps") | ("v", "v"):
                return value
            case "x", "eps":
                return (z - t * value) / to_data
            case "x", "v":
                return (value - z) / to_data
            case "eps", "x":
                return (z - (1 - t) * value) / from_noise
            case "eps", "v":
                return (z - value) / from_noise
            case "v", "x":
                return z + (1 - t) * value
            case "v", "eps":
                return z - t * value
        raise ValueError(f"no space is called {space!r}; there are {', '.join(SPACES)}")


def _from_parts(tensors: Iterable[Tensor], facts: Any) -> Prediction:
    value, z, t, *beside = tensors
    space, t_eps, *names = facts
    return Prediction(value, z, t, space, t_eps, dict(zip(names, beside, strict=True)))


# Known to torch as a container of tensors, so that torch.export and torch.func see through a model that returns one.
# The names of what is beside are facts, so that a prediction with nothing beside is the container it always was.
pytree.register_pytree_node(
    Prediction,
    lambda p: ([p.value, p.z, p.t, *p.beside.values()], (p.space, p.t_eps, *p.beside)),
    _from_parts,
    serialized_type_name="justimage.Prediction",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
)


def denoising_loss(prediction: Prediction, x: Tensor, eps: Tensor, space: Space = "v") -> Tensor:
    """The mean squared error per sample, (B,), measured in `space` (Table 1, arXiv 2511.13720).

    In v it is Eq. 3, the loss of flow matching; with a network that predicts x, Eq. 6, the paper's choice.
    The truth goes the same way as the prediction, floors included: it is written down in the space that the
    network predicts and converted from there. So a perfect network has zero loss at every t, and the nine
    combinations are merely nine weightings of the raw error over t.
    """
    truth = {"x": x, "eps": eps, "v": velocity(x, eps)}[prediction.space]
    target = Prediction(truth, prediction.z, prediction.t, prediction.space, prediction.t_eps)
    return (prediction.to(space) - target.to(space)).square().flatten(1).mean(1)


FURTHEST = 100.0  # logit(t) = 17 is t = 1 in float32 already


@runtime_checkable
class Density(Protocol):
    """A density of training times: a frozen dataclass, so that a run's recipe.json can say which one it was."""

    def times(self, normals: Tensor) -> Tensor:
        """Standard normal numbers (B,) -> times (B,) in [0, 1]."""
        ...


@dataclass(frozen=True)
class LogitNormal:
    """The density of training times: logit(t) ~ N(mean, std²) (section 3.3 and Table 9, arXiv 2511.13720).

    A lower mean is more noise. The paper uses mean -0.8 and std 0.8 at every resolution. Raises ValueError for numbers
    that are not finite or out of range.
    """

    mean: float = -0.8
    std: float = 0.8

    def __post_init__(self) -> None:
        if not (-FURTHEST <= self.mean <= FURTHEST and 0 <= self.std <= FURTHEST):
            raise ValueError(
                f"a density of times has the mean {self.mean} and the std {self.std}; the mean must lie between "
                f"-{FURTHEST:g} and {FURTHEST:g}, the std between 0 and {FURTHEST:g}"
            )

    def times(self, normals: Tensor) -> Tensor:
        """Standard normal numbers (B,) -> times (B,) in (0, 1)."""
        return torch.sigmoid(self.mean + self.std * normals)

    def density(self, t: Tensor) -> Tensor:
        """The probability density at t in (0, 1), same shape: N(logit t; mean, std²) / (t (1 - t))."""
        standard = (torch.logit(t) - self.mean) / self.std
        return torch.exp(-0.5 * standard.square()) / (self.std * (2 * torch.pi) ** 0.5 * t * (1 - t))
