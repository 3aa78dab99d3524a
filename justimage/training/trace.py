"""A step of training, traced without doing it: what it asks for, and what is in use meanwhile.

It is run on fake tensors, which have shapes and no numbers, and everything it does is noted. So nothing here knows a
network, and a new one is traced like ours.
"""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
class Trace:
    """A forward and a backward pass of so many samples."""

    samples: int
    totals: np.ndarray
    """(5,): forward, backward, products_moved, others_moved and operations."""
    kept: int
    held: np.ndarray
    """(M,) bytes in use, whenever more are asked for."""
    gradients: np.ndarray
    """(M,) bytes of gradients at these moments."""


def trace(model: Denoiser, config: Training, samples: int, fused_attention: bool) -> Trace:
    """One pass of so many samples through a model, on the CPU, as `training.work.counts_of` asks for it."""
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
        return Trace(
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
