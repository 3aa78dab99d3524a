"""Power-function averages, and any of them after training: section 3 and appendix C of EDM2, arXiv 2312.02696.

A power-function average of the weights w(s) at time t weighs them by (s / t)^gamma: it forgets the beginning of a run
at whatever length the run has. How long it reaches back is told by its std: the standard deviation of that weight over
s, relative to t; 0.05 to 0.2 are usual. Snapshots of a few such averages span the others, which are then weighted sums.
"""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np

LONGEST_STD = 0.28  # gamma = 0, the plain mean of all weights, has 1 / sqrt(12) = 0.2887


class Profile(NamedTuple):
    """How a power-function average at `nimg` weighs the weights since the start: by s^gamma for s in (0, nimg]."""

    gamma: float
    nimg: int


def std_of(gamma: float) -> float:
    """The relative std of a power-function average: that of the density (gamma + 1) s^gamma on [0, 1] (arXiv
    2312.02696, appendix C: its mean is (gamma + 1) / (gamma + 2))."""
    return sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(std: float) -> float:
    """The exponent of the power-function average with this relative std, the inverse of `std_of`.

    The largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / std^2. Raises ValueError where std is not in
    (0, LONGEST_STD], in which that is one number of at least 0.
    """
    if not 0 < std <= LONGEST_STD:
        raise ValueError(f"the std of an average is {std}; it must be above 0, and at most {LONGEST_STD}")
    inverse = std**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.abs(roots.imag) < 1e-6 * np.abs(roots)].real.max())


def power_decay(gamma: float, nimg: int, step_nimg: int) -> float:
    """The decay of the update that ends at nimg and began step_nimg samples earlier (section 3.1 there).

    The part of the weights s^gamma that lies before the step. With it, the average is exactly the integral of s^gamma
    w(s), where w(s) is what the weights are at the end of the step that s lies in. The first update takes them over.
    """
    return max(1 - step_nimg / nimg, 0.0) ** (gamma + 1)


def overlap(a: Profile, b: Profile) -> float:
    """The integral over s of the product of two profiles, each of integral 1 (appendix C there), in closed form.

    The product is zero beyond the earlier of the two times.
    """
    both = min(a.nimg, b.nimg)
    scale = (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1)
    return scale * (both / a.nimg) ** a.gamma * (both / b.nimg) ** b.gamma * both / (a.nimg * b.nimg)


class Mixture(NamedTuple):
    """The weighted sum of snapshots that comes nearest to a profile."""

    shares: tuple[float, ...]
    error: float
    """Distance of the sum to the profile, as a share of the profile's own norm (both as functions of s)."""


def mixture(snapshots: Sequence[Profile], wanted: Profile) -> Mixture:
    """The sum of snapshots whose profile is nearest to the wanted one, in the mean square over s (appendix C there).

    Raises ValueError where there are no snapshots.
    """
    if not snapshots:
        raise ValueError("there are no snapshots to reconstruct an average from")
    products = np.array([[overlap(a, b) for b in snapshots] for a in snapshots])
    aims = np.array([overlap(each, wanted) for each in snapshots])
    # Each snapshot to norm 1: early ones would look large otherwise, and the solution lose digits.
    norms = np.sqrt(np.diag(products))
    shares = np.linalg.lstsq(products / np.outer(norms, norms), aims / norms, rcond=1e-13)[0] / norms
    own = overlap(wanted, wanted)
    missed = own - 2 * float(shares @ aims) + float(shares @ products @ shares)
    return Mixture(tuple(map(float, shares)), sqrt(max(missed, 0.0) / own) if own < inf else inf)
