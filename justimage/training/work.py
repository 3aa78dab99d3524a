"""The work of a training step, counted without doing it: multiply-adds, bytes that are moved, bytes that are held.

The step of the loop is run on fake tensors, which have shapes and no numbers, and everything it asks for is noted. So
nothing here knows a network, and a new one is counted like ours.
"""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from justimage.data.loader import model_values
from justimage.denoiser import Denoiser
from justimage.execution import autocast, checkpoint_blocks
from justimage.training.loss import flow_matching
from justimage.training.settings import Training

CPU = torch.device("cpu")


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
    """Bytes that matrix products read and write: what fused kernels between them write and read."""
    others_moved: int
    """Bytes that everything else reads and writes, each operation by itself."""
    operations: int
    """All of them, products too: on a GPU each is a kernel that the host asks for."""
    kept: int
    """Bytes held at the end of the forward pass: batch, noise, and activations for the backward pass."""
    peak: int
    """The most bytes held at once, gradients among them."""
    peak_gradients: int
    """Gradients at that moment."""


def work_of(model: Denoiser, config: Training, samples: int, *, fused_attention: bool = False) -> Work:
    """The work of a step on so many samples in one process, in microbatches if `config` says so.

    model: as `Recipe.model` gives it, before it is built; nothing of it is changed. fused_attention: attention that
    keeps no scores, as GPUs have it, wherever the network leaves the choice to PyTorch. Precision is that of
    `config.precision`; auto: this machine's. Blocks are taken as they are written, not compiled.

    Raises what torch raises for a network that looks at its numbers: there are none.
    """
    dtype = config.dtype(CPU)
    micro = min(config.microbatch or samples, samples)
    parts = [micro] * (samples // micro) + [samples % micro] * (samples % micro > 0)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        model = _without_numbers(model)
        if config.checkpoint:
            checkpoint_blocks(model.net)
        if fused_attention and dtype != torch.float32:
            _leave_attention_to_torch(model.net, dtype)
        model.train()
        loss = flow_matching(model, config)
        memory = _Memory(list(model.net.parameters()))
        with memory, FlopCounterMode(display=False) as products:
            forward, kept, done = 0, 0, 0
            x, y = _batch(model, config, samples)
            for part in parts[:2]:  # those after them are like the second
                before = products.get_total_flops()
                with autocast(CPU, dtype):
                    some = {name: each[:part] for name, each in y.items()} or None
                    total = loss(model, x[:part], some, range(part)).total.sum()
                forward += products.get_total_flops() - before
                kept = max(kept, memory.held)
                with memory.collecting() if config.checkpoint else nullcontext():
                    total.backward()
                done += part
        scale = samples / done
        return Work(
            samples=samples,
            forward=round(scale * forward / 2),
            backward=round(scale * (products.get_total_flops() - forward) / 2),
            products_moved=round(scale * memory.products_moved),
            others_moved=round(scale * memory.others_moved),
            operations=round(scale * memory.operations),
            kept=kept,
            peak=memory.peak,
            peak_gradients=memory.peak_gradients,
        )


def _without_numbers(model: Denoiser) -> Denoiser:
    """A copy of a model with fake parameters and buffers, on the CPU; facts are shared."""
    known: dict[int, Any] = {id(fact): fact for fact in (model.spec, model.sampling, model.config)}
    for each in model.buffers():
        known[id(each)] = torch.empty(each.shape, dtype=each.dtype)
    for each in model.parameters():
        known[id(each)] = nn.Parameter(torch.empty(each.shape, dtype=each.dtype), requires_grad=each.requires_grad)
    return copy.deepcopy(model, known)


def _batch(model: Denoiser, config: Training, samples: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of model values as the loop makes it."""
    spec = model.spec
    assert spec is not None
    null = model.null(samples, model.config.size, CPU)
    raw = torch.empty(samples, model.config.channels, *model.config.size)
    y = null if isinstance(null, dict) else {}
    return model_values(raw, y, spec, seed=config.seed, positions=range(samples), mirror=config.mirrors(spec))


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


class _Memory(TorchDispatchMode):
    """Notes every tensor that is made, until it is gone."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__()
        self.held = self.peak = self.peak_gradients = 0
        self.products_moved = self.others_moved = self.operations = 0
        self._collecting = False
        self._parameters = parameters
        self._known = WeakIdKeyDictionary()
        for each in self._parameters:
            self._known[each.untyped_storage()] = 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect garbage before a new peak is believed: what is computed again ends in cycles, if it is fake."""
        gc.freeze()  # what was there before need not be looked at each time
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False
            gc.unfreeze()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = list(_tensors(result))
        if any([self._note(each) for each in made]) or function._schema.is_mutable:
            self.operations += 1
            moved = sum(each.numel() * each.element_size() for each in (*_tensors((args, kwargs)), *made))
            if function._overloadpacket in flop_registry:
                self.products_moved += moved
            else:
                self.others_moved += moved
        return result

    def _note(self, tensor: Tensor) -> bool:
        """Whether a tensor has memory that was not there before."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return False
        size = storage.nbytes()
        self._known[storage] = size
        self.held += size
        finalize(storage, self._free, size).atexit = False
        if self.held > self.peak:
            if self._collecting:
                gc.collect()
            self.peak = max(self.peak, self.held)
            self.peak_gradients = sum(
                each.grad.numel() * each.grad.element_size() for each in self._parameters if each.grad is not None
            )
        return True

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
