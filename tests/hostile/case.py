"""What a case is, and how a door chooses one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Rng = np.random.Generator
Expect = Literal["accept", "refuse", "either"]
NONE = "none"
GOOD_SHARE = 0.15  # of the cases of each door have a good input


@dataclass(frozen=True)
class Case:
    """A command on an input that lies in the working folder by now, and what is known about it."""

    mutation: str
    """What was done to a good input; `none` for a control."""
    command: tuple[str, ...]
    """The arguments of `jit`; or `read PATH`, which opens the source and reads every sample."""
    expect: Expect = "either"
    """accept or refuse, where the reference knows; either: if it is accepted, it must be `right`."""
    words: tuple[str, ...] = ()
    """A refusal names at least one of these."""
    right: Callable[[], str] = field(default=lambda: "")
    """Called after exit code 0: what is not as it was put in, or nothing."""
    aloud: tuple[str, ...] = ()
    """Accepting otherwise is right where one of these is said: a file that is there and not used, say."""
    writes: tuple[str, ...] = ("out",)
    """What the command may write, in the working folder."""
    codes: tuple[int, ...] = (2,)
    """Exit codes of a refusal; 1 is for what fails once it has begun."""


Door = Callable[[Rng], Case]
Mutation = Callable[..., Case]


def pick(rng: Rng, choices: Iterable[Any]) -> Any:
    """One of the choices, as it is (numpy's own choice makes arrays and strings of them)."""
    choices = list(choices)
    return choices[int(rng.integers(len(choices)))]


def choose(rng: Rng, mutations: Mapping[str, Mutation]) -> tuple[str, Mutation]:
    """The name and function of a mutation: that called `none` in GOOD_SHARE of the cases, any other equally often."""
    if rng.random() < GOOD_SHARE:
        return NONE, mutations[NONE]
    name = pick(rng, [name for name in mutations if name != NONE])
    return name, mutations[name]
