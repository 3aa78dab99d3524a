"""The precision of matrix products: chosen by how fast this machine is with each, measured once and kept."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from justimage.execution import finish
from justimage.timing import measured_once

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # any other name: see fast_dtype
SAMPLING_PRECISIONS = {**PRECISIONS, "int8": torch.int8}  # trained models can also be rounded further
WORTH = 1.5  # a product that gains less than this is eaten up by casts and by what stays in float32
# Rows, inner and outer length: tokens of an image or two through the widest map of B/16; a GPU needs more to be busy.
SHAPE, LARGE_SHAPE = (256, 768, 4096), (8192, 4096, 4096)
FEW_ROWS = 32  # tried first: some machines take a hundred times as long for what they do not know
HOPELESS = 0.25  # of float32's speed, with few rows
SECONDS, MOST_CALLS = 0.1, 20  # of each precision


@dataclass(frozen=True)
class Product:
    """How fast a machine multiplies matrices in one precision, and what follows."""

    precision: str
    flops: float | None
    """Floating-point operations in a second, a multiply-add being two; None where it cannot."""
    chosen: bool
    why: str


def measure(device: torch.device) -> dict[str, float | None]:
    """FLOP/s of a matrix product (m, k) @ (k, n) in each precision, the fastest of several; None where there is none.

    int8 products have int32 sums.
    """
    m, k, n = LARGE_SHAPE if device.type == "cuda" else SHAPE
    found: dict[str, float | None] = {}
    for name in ("float32", "bfloat16", "float16", "int8"):
        dtype = getattr(torch, name)
        try:
            rate = _rate(FEW_ROWS, k, n, dtype, device)
            if rate > HOPELESS * (found.get("float32") or 0.0):
                rate = _rate(m, k, n, dtype, device)
            found[name] = rate
        except (RuntimeError, NotImplementedError):  # this device has no such product
            found[name] = None
    return found


def _rate(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> float:
    return 2 * m * k * n / _fastest(matrix_product(m, k, n, dtype, device), device)


def matrix_product(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """A call that multiplies an (m, k) and a (k, n) matrix of random numbers; int8 ones with int32 sums."""
    if dtype == torch.int8:
        a, b = (torch.randint(-127, 128, shape, dtype=dtype, device=device) for shape in ((m, k), (n, k)))
        return lambda: torch._int_mm(a, b.mT)  # pyright: ignore[reportPrivateImportUsage]
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (n, k)))
    return lambda: torch.nn.functional.linear(a, b)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    call()
    finish(device)
    best, began = float("inf"), time.perf_counter()
    for _ in range(MOST_CALLS):
        start = time.perf_counter()
        call()
        finish(device)
        now = time.perf_counter()
        best = min(best, now - start)
        if now - began > SECONDS:
            break
    return best


def probe(device: torch.device) -> list[Product]:
    """What this machine was found to do with each precision; measured once, and kept beside other cached values."""
    # The shape is part of what was measured: another one is another measurement.
    return judged(measured_once(f"matrix products {SHAPE} {LARGE_SHAPE}", device, lambda: measure(device)))


def judged(flops: dict[str, float | None]) -> list[Product]:
    """Which precision is the default, given how fast each is, and why the others are not."""
    base, half = flops["float32"], flops["bfloat16"]
    gains = base is not None and half is not None and half >= WORTH * base

    def why(name: str, rate: float | None) -> str:
        if rate is None:
            return "this machine has no such product"
        if name == "float32":
            return "exact, but slower" if gains else "exact, and nothing that is safe is much faster"
        if name == "bfloat16":
            return f"at least {WORTH:g} times as fast as float32" if gains else f"less than {WORTH:g} times float32"
        return "never by itself: " + ("numbers beyond 65,504 overflow" if name == "float16" else "it rounds too much")

    return [
        Product(name, rate, name == ("bfloat16" if gains else "float32"), why(name, rate))
        for name, rate in flops.items()
    ]


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where this machine multiplies it at least 1.5 times as fast as float32, otherwise float32.

    As measured (`probe`): GPUs from Ampere on and CPUs with AMX do; elsewhere bfloat16 is emulated and slower.
    """
    return next(PRECISIONS[each.precision] for each in probe(device) if each.chosen)
