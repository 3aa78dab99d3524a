"""Samplers: from noise at t = 0 to data at t = 1 along dz/dt = v, equation 4 of arXiv 2511.13720.

A step takes (predict, z, t, t_next) to the state at t_next, where predict(z, t) -> Prediction and t is a
0-dimensional tensor on the CPU. `integrate` walks a time grid; guidance is a closure around the model. To
watch the predictions, wrap `predict`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from justimage.process import Prediction

Predict = Callable[[Tensor, Tensor], Prediction]
Step = Callable[[Predict, Tensor, Tensor, Tensor], Tensor]
MOST_STEPS = 100_000
STRONGEST = 1e6  # guidance; beyond, float32 overflows
FURTHEST_SHIFT = 100.0  # one way or the other; beyond, half of the steps are within 1 % of one end
Grid = Callable[[int], Tensor]  # a number of steps -> times from 0 to 1, (steps + 1,)
Sampler = Literal["heun", "euler", "ab2", "dpm++2m", "deis"]
Final = Literal["official", "x"]


def euler(predict: Predict, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One step of Euler's method, first order, one evaluation (Alg. 2, arXiv 2511.13720). z (B, C, *S)."""
    return z + (t_next - t) * predict(z, t).to("v")


def heun(predict: Predict, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One step of Heun's method, second order, two evaluations (the paper's default, Table 9). z (B, C, *S)."""
    v = predict(z, t).to("v")
    v_next = predict(z + (t_next - t) * v, t_next).to("v")
    return z + (t_next - t) / 2 * (v + v_next)


def adams_bashforth2() -> Step:
    """A step of the two-step Adams-Bashforth method, second order, one evaluation; its first step is Euler's.

    Returns a fresh step, since it remembers the velocity of the step before (Hairer, Norsett, Wanner, Solving
    Ordinary Differential Equations I, III.1, Eq. 1.10, for variable step lengths).
    """
    before: tuple[Tensor, Tensor] | None = None

    def step(predict: Predict, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        nonlocal before
        v, length = predict(z, t).to("v"), t_next - t
        slope = v
        if before is not None:
            v_before, length_before = before
            slope = v + length / (2 * length_before) * (v - v_before)
        before = v, length
        return z + length * slope

    return step


def dpm_solver_2m() -> Step:
    """A step of DPM-Solver++(2M), second order, one evaluation (Alg. 2, arXiv 2211.01095, which predicts x).

    Returns a fresh step, since it remembers the x of the step before. With alpha = t, sigma = 1 - t and
    lambda = log(t / (1 - t)), to which a noise scale only adds a constant, the paper's coefficients are ratios of
    times: nothing is floored. Lambda is infinite at t = 0 and t = 1, where a line through two x has no slope: a step
    from 0, the one after it and a step to 1, which lands on x, are of first order. Equal steps in t are never small
    in lambda at those ends; over all of 0 to 1 the error falls as h^2 log(1 / h).
    """
    before: tuple[Tensor, Tensor] | None = None

    def step(predict: Predict, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        nonlocal before
        x, length = predict(z, t).to("x"), torch.logit(t_next) - torch.logit(t)
        data = x
        if before is not None and length.isfinite():
            x_before, length_before = before
            data = x + length / (2 * length_before) * (x - x_before)
        before = (x, length) if length.isfinite() else None
        return (1 - t_next) / (1 - t) * z + (t_next - t) / (1 - t) * data

    return step


def deis() -> Step:
    """A step that is exact where x is linear in t, one evaluation; second order, and also as the last step, to t = 1.

    The path obeys d/dt (z / (1 - t)) = x / (1 - t)^2. A step takes the predicted x as the line through the last two
    evaluations and integrates that in closed form: DEIS with polynomials in t (arXiv 2204.13902, section 3.3) for
    x-prediction. Nothing is infinite at t = 0 or t = 1; a step to 1 lands on the line's x there, not on the x of the
    last evaluation, which is still blurred by the noise in its z. Before a step, the state it starts from is computed
    once more with the x that was found there, which costs nothing (the corrector of UniPC, arXiv 2302.04867).

    Returns a fresh step, since it remembers the state and the evaluation before.
    """
    before: tuple[Tensor, float, Tensor] | None = None  # state, 1 - t and predicted x

    def step(predict: Predict, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        nonlocal before
        q, x = 1 - float(t), predict(z, t).to("x")
        if before is not None:
            z_before, q_before, x_before = before
            z = _along_a_line(z_before, q_before, x_before, q, q, x)
        q_other, x_other = (None, x) if before is None else before[1:]
        before = z, q, x
        return _along_a_line(z, q, x, 1 - float(t_next), q_other, x_other)

    return step


def _along_a_line(z: Tensor, q: float, x: Tensor, q_next: float, q_other: float | None, x_other: Tensor) -> Tensor:
    """From z at 1 - t = q to q_next, where x is the line through x at q and x_other at q_other, or x alone."""
    constant = 1 - q_next / q  # the integrals of q_next / s^2, and of q_next / s, from q_next to q
    linear = q_next * log(q / q_next) if q_next else 0.0
    slope = 0.0 if q_other is None else (linear - q * constant) / (q_other - q)
    return q_next / q * z + constant * x + slope * (x_other - x)


def land(predict: Predict, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The last step without the floor: from any t to 1 along a straight line is the predicted x itself.

    Euler's step with 1 - t floored at 0.05 goes only part of the way (40 % from t = 0.98).
    """
    if t_next != 1:
        raise ValueError(f"landing on the predicted x ends at t = 1, not at {float(t_next)}")
    return predict(z, t).to("x")


STEPS: dict[Sampler, Callable[[], Step]] = {
    "heun": lambda: heun,
    "euler": lambda: euler,
    "ab2": adams_bashforth2,
    "dpm++2m": dpm_solver_2m,
    "deis": deis,
}
TO_THE_END: tuple[Sampler, ...] = ("deis",)  # whose own step also reaches t = 1
FINALS: dict[Final, Step] = {"official": euler, "x": land}


def linear_grid(steps: int) -> Tensor:
    """steps + 1 times from 0 to 1, equally far apart (Table 9, arXiv 2511.13720): (steps + 1,) float64."""
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"{steps} steps; at least 1 and at most {MOST_STEPS:,} are possible")
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def shifted(shift: float) -> Grid:
    """The grid whose logit(t) is lower by log(shift): 1 is the linear one, a larger shift takes smaller steps in noise.

    t / (t + shift (1 - t)) at the linear t: Eq. 23 of arXiv 2403.03206, where time runs from data at 0 to noise at 1
    and the shift is sqrt(m / n). Raises ValueError for a shift out of range.
    """
    if not 1 / FURTHEST_SHIFT <= shift <= FURTHEST_SHIFT:
        raise ValueError(f"shift is {shift}; it must lie between {1 / FURTHEST_SHIFT:g} and {FURTHEST_SHIFT:g}")

    def grid(steps: int) -> Tensor:
        t = linear_grid(steps)
        return t / (t + shift * (1 - t))

    return grid


def integrate(predict: Predict, z: Tensor, times: Tensor, step: Step = heun, final: Step = euler) -> Tensor:
    """Walk z (B, C, *S) along the grid of times (N + 1,), the last step by `final`; Eq. 4, arXiv 2511.13720.

    The state, the velocity and the step are float32 (or float64, if z is) whatever the network computes in:
    a state in bfloat16 decays into noise over many steps.
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    legs = list(pairwise(times.cpu()))
    for t, t_next in legs[:-1]:
        z = step(predict, z, t, t_next)
    t, t_next = legs[-1]
    return final(predict, z, t, t_next)


def guided(
    model: Callable[[Tensor, Tensor, Any], Prediction],
    y: Any,
    null: Any = None,
    scale: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    every: int = 1,
) -> Predict:
    """The model as predict(z, t), with classifier-free guidance (arXiv 2207.12598) inside an interval of t.

    y, null: a value of the condition, tensors with the batch first, and the value that means none. Inside
    lo < t < hi (from t = 0 on if lo is 0; arXiv 2404.07724) the result is null + scale (conditional - null),
    both from one call on a doubled batch; elsewhere, and everywhere at scale 1, the null pass is not run. All
    spaces are affine in each other at a given z and t, so guidance is the same in every space. every: inside, the null
    pass is run at each so-many-th evaluation; in between, the difference that was found last, in the space that the
    model predicts in, is added once more. Such a predict remembers, and is for one trajectory. What a prediction has
    beside its value is the conditional one's. Raises ValueError for a scale other than 1 without y or null.
    """
    lo, hi = interval
    inside_before, difference = 0, torch.zeros(())
    if scale != 1 and (y is None or null is None):
        what = "condition" if y is None else "null value of the condition"
        raise ValueError(f"guidance with scale {scale} needs a {what}, but there is none; a scale of 1 is no guidance")

    def predict(z: Tensor, t: Tensor) -> Prediction:
        nonlocal inside_before, difference
        times = torch.full((len(z),), float(t), device=z.device, dtype=z.dtype)  # filled on the device: nothing waits
        # The tolerance keeps a grid point meant to lie on the edge outside, however it is rounded.
        inside = (lo == 0 or float(t) > lo + 1e-6) and float(t) < hi - 1e-6
        if scale == 1 or not inside:
            return model(z, times, y)
        inside_before += 1
        if (inside_before - 1) % every:
            found = model(z, times, y)
            return replace(found, value=found.value + (scale - 1) * difference)
        y_and_null = pytree.tree_map(lambda a, b: torch.cat((a, b)), y, null)
        both = model(torch.cat((z, z)), torch.cat((times, times)), y_and_null)
        conditional, unconditional = both.value.chunk(2)
        difference = conditional - unconditional
        value = unconditional + scale * difference
        beside = {name: each.chunk(2)[0] for name, each in both.beside.items()}
        return Prediction(value, z, times, both.space, both.t_eps, beside)

    return predict


@dataclass(frozen=True)
class Sampling:
    """How to draw samples; a checkpoint carries the settings recommended for it."""

    steps: int = 50
    """Steps of the time grid."""
    sampler: Sampler = "heun"
    """heun: 2 evaluations a step, the paper's; deis, the best at few steps, ab2 (Adams-Bashforth) and dpm++2m
    (DPM-Solver++): 1; euler: 1, and first order."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 is none, and costs half."""
    interval: tuple[float, float] = (0.1, 1.0)
    """The times between which guidance acts."""
    final: Final = "official"
    """The last step: official, Euler's with its floor; or x, landing on the predicted x. deis has its own."""
    shift: float = 1.0
    """The time grid: 1 is linear; larger ones take smaller steps in the noise, smaller ones near the data."""
    guidance_every: int = 1
    """Evaluations from one with the null condition to the next; in between, guidance repeats what it found."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps is {self.steps}; at least 1 and at most {MOST_STEPS:,} are possible")
        if not -STRONGEST <= self.guidance <= STRONGEST:
            raise ValueError(f"guidance is {self.guidance}; it must lie between -{STRONGEST:,.0f} and {STRONGEST:,.0f}")
        if not 1 <= self.guidance_every <= MOST_STEPS:
            raise ValueError(f"guidance_every is {self.guidance_every}; it must lie between 1 and {MOST_STEPS:,}")
        if self.sampler not in STEPS:
            raise ValueError(f"no sampler is called {self.sampler!r}; there are {', '.join(STEPS)}")
        if self.final not in FINALS:
            raise ValueError(f"no final step is called {self.final!r}; there are {', '.join(FINALS)}")
        lo, hi = self.interval
        if not 0 <= lo <= hi <= 1:
            raise ValueError(f"the guidance interval is {self.interval}; it must be 0 <= lo <= hi <= 1")
        shifted(self.shift)  # raises now, not at the first sample

    def evaluations(self) -> int:
        """Network evaluations for one sample, a guided one counting twice (NFE)."""
        count = 0

        def model(z: Tensor, times: Tensor, y: Any) -> Prediction:
            nonlocal count
            count += len(z)
            return Prediction(z, z, times, "x")

        y = torch.zeros(1, dtype=torch.long)
        self.run(guided(model, y, y, self.guidance, self.interval, self.guidance_every), torch.zeros(1, 1))
        return count

    def run(self, predict: Predict, z: Tensor, *, step: Step | None = None, grid: Grid | None = None) -> Tensor:
        """Integrate from z = noise at t = 0 to data at t = 1 with these settings. (B, C, *S) -> (B, C, *S).

        step, grid: functions in place of those that `sampler` and `shift` name.
        """
        own = step is None and self.sampler in TO_THE_END
        step = step or STEPS[self.sampler]()
        return integrate(predict, z, self.times(grid), step, step if own else FINALS[self.final])

    def times(self, grid: Grid | None = None) -> Tensor:
        """The time grid, (steps + 1,) on the CPU; grid: a function in place of the one that `shift` names."""
        return (grid or shifted(self.shift))(self.steps)


class Settings(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments."""

    steps: int
    sampler: Sampler
    guidance: float
    interval: tuple[float, float]
    final: Final
    shift: float
    guidance_every: int


Preset = Literal["paper", "fast", "faster"]
# How to integrate; guidance and its interval are the model's own. Samples of fast and faster are not measurably worse
# than the paper's (two standard errors of three times 5,000) on either of two models (benchmarks/results/presets-*).
PRESETS: dict[Preset, Settings] = {
    "paper": {"steps": 50, "sampler": "heun", "shift": 1.0, "final": "official", "guidance_every": 1},
    "fast": {"steps": 12, "sampler": "deis", "shift": 1.0, "final": "x", "guidance_every": 1},
    "faster": {"steps": 10, "sampler": "deis", "shift": 1.0, "final": "x", "guidance_every": 2},
}


def with_settings(sampling: Sampling, settings: Settings) -> Sampling:
    """The same with some fields replaced. Raises ValueError for settings that do not exist or make no sense."""
    known = Sampling.__dataclass_fields__
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"no sampling setting is called {', '.join(unknown)}; there are {', '.join(known)}")
    return replace(sampling, **settings)
