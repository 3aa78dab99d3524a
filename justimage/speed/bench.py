"""What training and sampling with a network cost on this machine: seconds, shares of its peak, and what of."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from justimage.data.arrays import Arrays
from justimage.data.loader import batches
from justimage.data.spec import Source
from justimage.denoiser import Denoiser
from justimage.execution import device_name, name_of_dtype, precision_of
from justimage.networks.cost import cost_of
from justimage.networks.layers import MLP, Attention, Modulation, SwiGLU
from justimage.parallel import Processes
from justimage.precision import SAMPLING_PRECISIONS, probe
from justimage.process import Prediction
from justimage.randomness import Purpose, normals, training_noise, uniforms
from justimage.runs.plan import USABLE
from justimage.runs.recipes import Recipe
from justimage.samplers import PRESETS, Sampling, with_settings
from justimage.sampling.draw import draw, predictor
from justimage.speed.clock import Clock, forget_peak, peak_memory, square_product
from justimage.speed.plain import plain, sample_plainly, training_step
from justimage.timing import Timed, kept_to, timed
from justimage.training.build import build, initialise
from justimage.training.loop import train
from justimage.training.loss import flow_matching
from justimage.training.settings import Training
from justimage.training.work import Held, counts_of
from justimage.weights.load import compile_for, prepare
from justimage.weights.pieces import pieces_gain

PARTS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "attention": (Attention,),
    "feed-forward": (SwiGLU, MLP),
    "modulation": (Modulation,),
}
REST = "rest of the network"
SAMPLES_MADE, CLASSES_MADE = 512, 10  # of random data, where a recipe's are not here
SHORT_SECONDS = 1.0  # a step that is timed is to take about this long, unless the recipe's whole batch is faster
FIRST = 2  # steps, in which memory is measured
MANY = 10**9  # evaluations: what is measured is a long drawing
LIKELY_SHARE = 0.4  # of the matmul peak, for that guess


@dataclass(frozen=True)
class Row:
    """One thing that was timed."""

    what: str
    seconds: Timed
    samples: int
    """That it trained on, or drew."""
    flop: float
    """Of its matrix products."""
    precision: str
    share_of_peak: float

    def plainly(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "img_per_second": self.samples / self.seconds.median}


@dataclass(frozen=True)
class Peaks:
    """FLOP/s of a large matrix product in each precision that is used, as the machine was while rows were timed."""

    flops: Mapping[str, float]

    def row(self, what: str, seconds: Timed, samples: int, flop: float, precision: str) -> Row:
        """With the share of the peak that it reached."""
        return Row(what, seconds, samples, flop, precision, flop / seconds.median / self.flops[precision])


def timed_with_peaks(
    rows: Mapping[str, Callable[[], object]], precisions: set[str], rounds: int, device: torch.device
) -> tuple[dict[str, Timed], Peaks]:
    """Rows as `timed` does it, and in turn with them the products that their shares are of."""
    products = {name: square_product(SAMPLING_PRECISIONS[name], device) for name in sorted(precisions)}
    found = timed({**rows, **{name: call for name, (call, _) in products.items()}}, rounds, device)
    return found, Peaks({name: flop / found.pop(name).median for name, (_, flop) in products.items()})


def facts(device: torch.device) -> dict[str, Any]:
    """Where it was measured."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kept_to": kept_to(),
        "products": [asdict(each) for each in probe(device)],
        "pieces_gain": pieces_gain(device),
    }


def made_up(recipe: Recipe, count: int = SAMPLES_MADE) -> Source:
    """Random data that the recipe's network takes, in place of its own: speed does not depend on what they show."""
    network: Any = recipe.network
    rng = np.random.default_rng(0)
    shape = (count, network.channels, *network.size)
    image = len(network.size) == 2 and network.channels in (1, 3)
    x = rng.integers(0, 256, shape, dtype=np.uint8) if image else rng.normal(size=shape).astype(np.float32)
    if not hasattr(network, "num_classes"):
        return Arrays(x, name="random data")
    classes = network.num_classes or CLASSES_MADE
    names = [str(k) for k in range(classes)]
    return Arrays(x, np.arange(count) % classes, classes=names, name="random data")


def untrained(recipe: Recipe, source: Source) -> Denoiser:
    """The model of a recipe with random weights, on the CPU."""
    model = recipe.fitted_to(source.spec).model(source.spec)
    initialise(model.net, recipe.training.seed)
    return _randomised(model)


def _randomised(model: Denoiser) -> Denoiser:
    """All parameters drawn, in place: a head of zeros might be faster."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def fitting_batch(flop: float, peak: float, most: int) -> int:
    """The largest power of two, at most `most`, with which a step of so many FLOP a sample takes about a second."""
    batch = 1
    while 2 * batch <= most and 2 * batch * flop < SHORT_SECONDS * LIKELY_SHARE * peak:
        batch *= 2
    return batch if 2 * batch <= most else most


def in_memory(model: Denoiser, config: Training, batch: int, there: float) -> int:
    """The batch, halved until a training, and a plain one beside it, fit into so many bytes."""
    counts = counts_of(model, replace(config, precision="float32"), fused_attention=False)
    held = 2 * Held.of(model.net, config.averages).total
    while batch > 1 and held + counts.work(batch).peak > there:
        batch //= 2
    return batch


def _rate(precision: str, device: torch.device) -> float:
    """About how many FLOP/s the machine does."""
    return next(each.flops or 1.0 for each in probe(device) if each.precision == precision)


# Training


def training_rows(recipe: Recipe, source: Source, batch: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """A step of training as the library takes it and as a first version would, in turn; and what it consists of.

    batch: samples of a step; 0: the recipe's, or fewer where a step would take long.
    """
    recipe = recipe.fitted_to(source.spec)
    flop = 3 * 2 * cost_of(recipe.network).multiply_adds
    precision = name_of_dtype(recipe.training.dtype(device))
    model, config = recipe.model(source.spec), replace(recipe.training, microbatch=0, duration_nimg=10**12)
    if not batch:
        batch = fitting_batch(flop, _rate(precision, device), recipe.training.batch_size)
        if device.type == "cuda":
            batch = in_memory(model, config, batch, USABLE * torch.cuda.mem_get_info(device)[0])
    config = replace(config, batch_size=batch)
    state = build(model, config, Processes(device=device))
    _randomised(state.model)
    loss = flow_matching(state.model, config)
    ticks = train(state, source, loss, config, tick_nimg=batch)
    forget_peak(device)
    for _ in range(FIRST):
        next(ticks)
    memory = peak_memory(device)  # before there is a second network

    other = plain(state.model)
    step = training_step(other, config)
    read = batches(source, seed=config.seed, start=0, batch_size=batch)
    rows = {"training": lambda: next(ticks), "training, plainly": lambda: step(next(read))}
    found, peaks = timed_with_peaks(rows, {"float32", precision}, rounds, device)
    precisions = {"training": precision, "training, plainly": "float32"}
    parts = _training_parts(ticks, state, config, source.spec.shape, max(rounds // 2, 1), device)
    return {
        "batch": batch,
        "rows": [
            peaks.row(name, each, batch, batch * flop, precisions[name]).plainly() for name, each in found.items()
        ],
        "parts": parts,
        "peak_GFLOP_per_s": {name: rate / 1e9 for name, rate in peaks.flops.items()},
        "peak_memory_MB": memory / 2**20,
    }


def _training_parts(
    ticks: Iterator[Any], state: Any, config: Any, shape: tuple[int, ...], steps: int, device: torch.device
) -> dict[str, float]:
    """Shares of a step. What is not looked at by itself is the backward pass and what lies between the parts."""
    clock, waited = Clock(device), 0.0
    positions = range(config.batch_size)
    with (
        _watched(state.model.net, clock),
        replaced(state.optimizer, "step", clock, "optimizer"),
        replaced(state.ema, "update", clock, "averages"),
    ):
        for _ in range(steps):
            with clock.part("step"):
                tick = next(ticks)
            waited += tick.waiting_on_data * config.batch_size / tick.img_per_second
    for _ in range(steps):
        with clock.part("noise and times"):
            training_noise(config.seed, positions, shape, device)
            normals(config.seed, Purpose.TIME, positions)
            uniforms(config.seed, Purpose.FLIP, positions)
            uniforms(config.seed, Purpose.DROP, positions)
    seconds = clock.seconds
    step = seconds.pop("step")
    seconds["waiting on data"] = waited
    seconds["backward pass, and the rest"] = step - sum(seconds.values())
    return {name: each / step for name, each in seconds.items()}


# Sampling


def sampling_rows(
    model: Denoiser,
    batch: int,
    rounds: int,
    device: torch.device,
    *,
    whole: bool,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """An evaluation with and without the null pass, as the library does it and plainly; whole samples by preset.

    model: not yet prepared; it is, in place, as for a long drawing. batch: samples drawn at once; 0: as many as take
    about a second. whole: draw whole samples, in place of adding up evaluations. dtype: as for `prepare`.
    """
    other = plain(model)
    beside = sum(each.numel() * each.element_size() for each in other.state_dict().values())
    model = prepare(model, device=device, dtype=dtype)
    compile_for(model, MANY)
    precision = precision_of(model.net)
    flop = 2 * cost_of(model.config).multiply_adds
    batch = batch or fitting_batch(2 * flop, _rate(precision, device), 64)
    noise = torch.randn(batch, model.config.channels, *model.config.size, generator=torch.Generator().manual_seed(0))
    noise = model.noise_scale * noise.to(device)
    y = _made_up_condition(model, batch, device)
    sampling = replace(model.sampling, guidance=max(model.sampling.guidance, 1.5) if y is not None else 1.0)
    presets = {name: with_settings(sampling, settings) for name, settings in PRESETS.items()}
    forget_peak(device)
    with torch.no_grad():
        _evaluation(model, y, noise, sampling.guidance)()
    memory = peak_memory(device) - (beside if device.type == "cpu" else 0)
    other = other.to(device)

    rows: dict[str, Callable[[], Any]] = {
        "evaluation": _evaluation(model, y, noise, 1.0),
        "evaluation, plainly": _plain_evaluation(other, y, noise),
    }
    if y is not None:
        rows["guided evaluation"] = _evaluation(model, y, noise, sampling.guidance)
        rows["guided evaluation, plainly"] = _plain_pair(other, y, noise, sampling.guidance)
    with torch.no_grad():
        found, peaks = timed_with_peaks(rows, {"float32", precision}, rounds, device)
    done = []
    for name, seconds in found.items():
        used, passes = "float32" if "plain" in name else precision, 2 if "guided" in name else 1
        done.append(peaks.row(name, seconds, batch, passes * batch * flop, used))
    if whole:
        calls: dict[str, Callable[[], Any]] = {}
        calls |= {name: lambda s=s: draw(model, y, noise, s) for name, s in presets.items()}
        calls["paper, plainly"] = lambda: sample_plainly(other, y, noise, presets["paper"])
        samples = timed(calls, max(rounds // 2, 1), device)
    else:
        samples = {name: _added_up(found, s, "") for name, s in presets.items()}
        samples["paper, plainly"] = _added_up(found, presets["paper"], ", plainly")
    return {
        "batch": batch,
        "guidance": sampling.guidance,
        "rows": [each.plainly() for each in done],
        "samples": [
            {
                "what": name,
                "evaluations": _plain_evaluations(presets["paper"]) if "plain" in name else presets[name].evaluations(),
                "seconds": asdict(each),
                "img_per_second": batch / each.median,
                "whole": whole,
            }
            for name, each in samples.items()
        ],
        "parts": _sampling_parts(model, y, noise, sampling, device),
        "peak_GFLOP_per_s": {name: rate / 1e9 for name, rate in peaks.flops.items()},
        "peak_memory_MB": memory / 2**20,
    }


def _made_up_condition(model: Denoiser, batch: int, device: torch.device) -> Any:
    """Labels, one after the other; None where the model has no labels, or also needs something else."""
    if [name for name, *_ in model.needs] != ["labels"]:
        return None
    return {"labels": torch.arange(batch, device=device) % model.num_classes}


def _evaluation(model: Denoiser, y: Any, noise: Tensor, scale: float) -> Callable[[], Prediction]:
    null = model.null(len(noise), noise.shape[2:], noise.device) if scale != 1 else None
    t = torch.tensor(0.5)
    sampling = Sampling(guidance=scale, interval=(0.0, 1.0))
    with torch.no_grad():  # as in a sample: what the network makes of the times of the grid is known before
        predict = predictor(model, y, null, noise, sampling, t[None])
    return lambda: predict(noise, t)


def _plain_evaluation(model: Denoiser, y: Any, noise: Tensor) -> Callable[[], Prediction]:
    t = torch.full((len(noise),), 0.5, device=noise.device)
    return lambda: model(noise, t, y)


def _plain_pair(model: Denoiser, y: Any, noise: Tensor, scale: float) -> Callable[[], Tensor]:
    null, t = model.null(len(noise), noise.shape[2:], noise.device), torch.full((len(noise),), 0.5, device=noise.device)

    def call() -> Tensor:
        conditional, unconditional = model(noise, t, y).to("v"), model(noise, t, null).to("v")
        return unconditional + scale * (conditional - unconditional)

    return call


def _added_up(found: Mapping[str, Timed], sampling: Sampling, suffix: str) -> Timed:
    """The time of a whole sample from those of its evaluations."""
    evaluations = sampling.evaluations()
    calls = replace(sampling, guidance=1.0).evaluations()
    both = calls if suffix and sampling.guidance != 1 else evaluations - calls
    names = {"evaluation": calls - both, "guided evaluation": both}
    parts = [(count, found[name + suffix]) for name, count in names.items() if count]
    rounds = min(each.rounds for _, each in parts)

    def total(field: str) -> float:
        return sum(count * getattr(each, field) for count, each in parts)

    return Timed(total("median"), total("fastest"), total("slowest"), rounds)


def _plain_evaluations(sampling: Sampling) -> int:
    calls = replace(sampling, guidance=1.0).evaluations()
    return calls * (2 if sampling.guidance != 1 else 1)


def _sampling_parts(
    model: Denoiser, y: Any, noise: Tensor, sampling: Sampling, device: torch.device
) -> dict[str, float]:
    clock = Clock(device)
    with _watched(model.net, clock), clock.part("sample"):
        draw(model, y, noise, replace(sampling, steps=3, interval=(0.0, 1.0)))
    seconds = clock.seconds
    whole = seconds.pop("sample")
    seconds["between evaluations"] = whole - sum(seconds.values())
    return {name: each / whole for name, each in seconds.items()}


@contextmanager
def _watched(net: nn.Module, clock: Clock) -> Iterator[None]:
    """Count the forward pass of a network by part. Compiled blocks are run as they were written meanwhile."""
    handles, compiled = [], {}
    running: dict[nn.Module, Any] = {}

    def begin(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, arguments: Any) -> None:
            running[module] = clock.part(name)
            running[module].__enter__()

        return hook

    def end(module: nn.Module, arguments: Any, result: Any) -> None:
        running.pop(module).__exit__(None, None, None)

    for module in net.modules():
        compiled[module], module._compiled_call_impl = module._compiled_call_impl, None
        name = "network" if module is net else next((n for n, kinds in PARTS.items() if isinstance(module, kinds)), "")
        if name:
            handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, call in compiled.items():
            module._compiled_call_impl = call
        inside = sum(clock.seconds.get(name, 0.0) for name in PARTS)
        clock.seconds[REST] = clock.seconds.pop("network", 0.0) - inside


@contextmanager
def replaced(owner: Any, method: str, clock: Clock, name: str) -> Iterator[None]:
    """Count the calls of an object's method as a part."""
    before = getattr(owner, method)

    def timed_call(*arguments: Any, **named: Any) -> Any:
        with clock.part(name):
            return before(*arguments, **named)

    setattr(owner, method, timed_call)
    try:
        yield
    finally:
        delattr(owner, method)
