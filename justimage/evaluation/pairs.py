"""Metrics of pairs of a sample and what it should be: PSNR and SSIM, on any number of spatial axes."""

import numpy as np

WINDOW = 11  # places, in each direction
SIGMA = 1.5


def psnr(a: np.ndarray, b: np.ndarray, span: float) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair of a and b (N, C, *S) in decibels, (N,): 10 log10(span^2 / MSE).

    span: what the values can range over, such as 255. Infinite for equal pairs. Raises ValueError for another shape
    or a span that is not positive.
    """
    _check(a, b, span)
    error = ((a.astype(np.float64) - b) ** 2).reshape(len(a), -1).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(span**2 / error)


def ssim(a: np.ndarray, b: np.ndarray, span: float) -> np.ndarray:
    """Structural similarity of each pair of a and b (N, C, *S), (N,), at most 1.

    Wang, Bovik, Sheikh and Simoncelli, IEEE Transactions on Image Processing 2004, Eq. 13, with its constants: K1 =
    0.01, K2 = 0.03, and local moments under a Gaussian window of standard deviation 1.5, 11 places wide, wherever it
    lies within the grid. The mean over these places and the channels. span: what the values can range over. Raises
    ValueError for another shape, a span that is not positive, or an axis shorter than the window.
    """
    _check(a, b, span)
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(
            f"size is {a.shape[2:]}; SSIM looks through a window of {WINDOW} and needs that along each axis"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    together = _blurred(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * together + c2) / (var_a + var_b + c2)
    return (light * structure).reshape(len(a), -1).mean(1)


def _blurred(x: np.ndarray) -> np.ndarray:
    """Local means of x (N, C, *S) under the window, each axis WINDOW - 1 shorter."""
    weights = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SIGMA**2)
    weights /= weights.sum()
    for axis in range(2, x.ndim):
        x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis) @ weights
    return x


def _check(a: np.ndarray, b: np.ndarray, span: float) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes are {a.shape} and {b.shape}; each sample needs its pair")
    if not span > 0:
        raise ValueError(f"span is {span}; it must be positive")
