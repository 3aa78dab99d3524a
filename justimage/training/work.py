"""The work of a training step, counted without doing it: multiply-adds, bytes that are moved, bytes that are held.

The step of the loop is run on fake tensors, which have shapes and no numbers, and everything it asks for is noted. So
nothing here knows a network, and a new one is counted like ours.
"""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import finalize

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from justimage.data.loader import model_values
from justimage.denoiser import Denoiser
from justimage.execution import autocast, checkpoint_blocks
from justimage.training.loss import flow_matching
from justimage.training.settings import Training

CPU = torch.device("cpu")
OFTEN = 8  # tensors after which garbage is collected, where blocks are computed again


@dataclass(frozen=True)
class Held:
    """Bytes that a process holds for a state, whatever it is doing."""

    weights: int
    gradients: int
    optimizer: int
    averages: int

    @classmethod
    def of(cls, net: nn.Module, averages: int) -> "Held":
        """Of a network with so many averages: gradients, two moments and averages of what learns."""
        sizes = [(each.numel() * each.element_size(), each.requires_grad) for each in net.parameters()]
        learning = sum(size for size, learns in sizes if learns)
        return cls(sum(size for size, _ in sizes), learning, 2 * learning, averages * learning)

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.averages


@dataclass(frozen=True)
class Work:
    """What one step does on one process, and what it holds beside weights, moments and averages."""

    samples: int
    forward: int
    """Multiply-adds of matrix products, attention among them, in the forward pass."""
    backward: int
    """The same in the backward pass, with what is computed again."""
    products_moved: int
    """Bytes that matrix products read and write."""
    others_moved: int
    """Bytes that everything else reads and writes, each operation by itself."""
    operations: int
    """All of them, products too: on a GPU each is a kernel that the host asks for."""
    kept: int
    """Bytes held at the end of the forward pass, gradients aside: batch, noise, and activations."""
    peak: int
    """The most bytes held at once, gradients among them."""
    peak_gradients: int
    """Gradients at that moment."""
    recomputed: bool
    """Whether blocks keep nothing but their inputs."""


@dataclass(frozen=True)
class _Trace:
    """A forward and a backward pass of so many samples."""

    samples: int
    totals: np.ndarray
    """(5,): forward, backward, products_moved, others_moved and operations."""
    kept: int
    held: np.ndarray
    """(M,) bytes in use, whenever more are asked for."""
    gradients: np.ndarray
    """(M,) bytes of gradients at these moments."""


@dataclass(frozen=True)
class Counts:
    """The work of a step with any number of samples. Every count is a straight line in them, which two points give."""

    few: _Trace
    more: _Trace
    sample_bytes: int
    """Of one sample as model values."""
    gradients: int
    """Bytes of all of them."""
    recomputed: bool

    def work(self, samples: int, microbatch: int = 0) -> Work:
        """Of one process with so many samples, all at once or in microbatches."""
        micro = min(microbatch or samples, samples)
        at = (micro - self.few.samples) / (self.more.samples - self.few.samples)

        def line(few: Any, more: Any) -> Any:
            return few + (more - few) * at

        held, gradients = (
            line(self.few.held, self.more.held) + (samples - micro) * self.sample_bytes,
            self.few.gradients,
        )
        if micro < samples:  # those of the microbatch before are there all the time
            held, gradients = held - gradients + self.gradients, np.full_like(gradients, self.gradients)
        highest = held.argmax()
        forward, backward, products_moved, others_moved, operations = (
            round(float(each)) for each in line(self.few.totals, self.more.totals) * samples / micro
        )
        return Work(
            samples=samples,
            forward=forward,
            backward=backward,
            products_moved=products_moved,
            others_moved=others_moved,
            operations=operations,
            kept=round(line(self.few.kept, self.more.kept)) + (samples - micro) * self.sample_bytes,
            peak=round(float(held[highest])),
            peak_gradients=int(gradients[highest]),
            recomputed=self.recomputed,
        )


def counts_of(
    model: Denoiser, config: Training, *, fused_attention: bool = False, samples: tuple[int, int] = (2, 4)
) -> Counts:
    """The work of a step of this model, whose weights it leaves alone and does not need.

    model: as `Recipe.model` gives it, or built. fused_attention: attention that keeps no scores, as GPUs have it,
    wherever the network leaves the choice to PyTorch. samples: that are counted with; not one, with which torch leaves
    out some of what it does with more. Precision is that of `config.precision`; auto: this machine's. Blocks are taken
    as they are written, not compiled. Raises what torch raises for a network that looks at its numbers.
    """
    few, more = (_trace(model, config, each, fused_attention) for each in samples)
    sample_bytes = 4 * model.config.channels * prod(model.config.size)
    return Counts(few, more, sample_bytes, Held.of(model.net, 0).gradients, config.checkpoint)


def _trace(model: Denoiser, config: Training, samples: int, fused_attention: bool) -> _Trace:
    dtype = config.dtype(CPU)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        model = _without_numbers(model)
        if config.checkpoint:
            checkpoint_blocks(model.net)
        if fused_attention and dtype != torch.float32:
            _leave_attention_to_torch(model.net, dtype)
        model.train()
        loss = flow_matching(model, config)
        with _Notes(model.net) as notes:
            raw, x, y = _batch(model, config, samples)
            with autocast(CPU, dtype):
                total = loss(model, x, y or None, range(samples)).total.sum()
            forward, kept = notes.multiply_adds, notes.held
            with notes.collecting() if config.checkpoint else nullcontext():
                total.backward()
            del raw
        backward = notes.multiply_adds - forward
        totals = [forward, backward, notes.products_moved, notes.others_moved, notes.operations]
        return _Trace(
            samples,
            np.array(totals, dtype=np.float64),
            kept,
            np.array(notes.held_then, dtype=np.float64),
            np.array(notes.gradients_then),
        )


def _without_numbers(model: Denoiser) -> Denoiser:
    """A copy of a model with fake parameters and buffers, on the CPU; facts are shared."""
    known: dict[int, Any] = {id(fact): fact for fact in (model.spec, model.sampling, model.config)}
    for each in model.buffers():
        known[id(each)] = torch.empty(each.shape, dtype=each.dtype)
    for each in model.parameters():
        known[id(each)] = nn.Parameter(torch.empty(each.shape, dtype=each.dtype), requires_grad=each.requires_grad)
    fake = copy.deepcopy(model, known)
    for module in fake.modules():
        module._compiled_call_impl = None
    return fake


def _batch(model: Denoiser, config: Training, samples: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A batch as it was read, and as model values."""
    spec = model.spec
    assert spec is not None
    null = model.null(samples, model.config.size, CPU)
    raw = torch.empty(samples, model.config.channels, *model.config.size)
    y = null if isinstance(null, dict) else {}
    mirror = config.mirrors(spec)
    return raw, *model_values(raw, y, spec, seed=config.seed, positions=range(samples), mirror=mirror)


def _leave_attention_to_torch(net: nn.Module, dtype: torch.dtype) -> None:
    """On CPUs, attention in bfloat16 is written out; in float32 it is not, and `_Fused` gives it its precision back."""

    def fused(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            with _Fused(dtype):
                return forward(*arguments)

        return call

    for module in net.modules():
        if getattr(module, "in_float32", True) is False:
            module.in_float32 = True  # type: ignore[assignment]
            module.forward = fused(module.forward)


class _Fused(TorchFunctionMode):
    """Attention in one operation, in a precision of its own."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            q, k, v, *rest = args
            args = (q.to(self.dtype), k.to(self.dtype), v.to(self.dtype), *rest)
        return function(*args, **(kwargs or {}))


class _Notes(TorchDispatchMode):
    """Notes every operation, and every tensor that is made, until it is gone."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.multiply_adds = self.products_moved = self.others_moved = self.operations = 0
        self.held = self.gradients = 0
        self.held_then: list[int] = []
        self.gradients_then: list[int] = []
        self._collecting = False
        self._known = WeakIdKeyDictionary()
        for each in (*net.parameters(), *net.buffers()):
            self._known[each.untyped_storage()] = True
        for each in net.parameters():
            if each.requires_grad:
                each.register_post_accumulate_grad_hook(self._note_gradient)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect garbage often: what is computed again ends in cycles of references, where tensors are fake."""
        gc.freeze()  # what was there before need not be looked at each time
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False
            gc.unfreeze()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        made = list(_tensors(result))
        if any([self._note(each) for each in made]) or function._schema.is_mutable:
            self.operations += 1
            moved = sum(each.numel() * each.element_size() for each in (*_tensors((args, kwargs)), *made))
            count = flop_registry.get(function._overloadpacket)
            if count is None:
                self.others_moved += moved
            else:
                self.products_moved += moved
                self.multiply_adds += count(*args, **kwargs, out_val=result) // 2
        return result

    def _note(self, tensor: Tensor) -> bool:
        """Whether a tensor has memory that was not there before."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return False
        size = storage.nbytes()
        self._known[storage] = True
        self.held += size
        finalize(storage, self._free, size).atexit = False
        if self._collecting and len(self.held_then) % OFTEN == 0:
            gc.collect()
        self.held_then.append(self.held)
        self.gradients_then.append(self.gradients)
        return True

    def _note_gradient(self, parameter: Tensor) -> None:
        self.gradients += parameter.numel() * parameter.element_size()

    def _free(self, size: int) -> None:
        self.held -= size


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        yield from _tensors(list(nested.values()))
    elif isinstance(nested, list | tuple):
        for each in nested:
            yield from _tensors(each)
