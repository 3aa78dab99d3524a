"""How a network is trained."""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

import torch

from justimage.data.spec import DataSpec
from justimage.precision import PRECISIONS, fast_dtype
from justimage.process import Density, LogitNormal, Space
from justimage.training.adapters import LoRA
from justimage.training.optim import Schedule
from justimage.training.profiles import gamma_of

MOST_NIMG = 10**15
LEAST = {"duration_nimg": 1, "batch_size": 1, "microbatch": 0, "warmup_nimg": 0, "ema_start_nimg": 0}
LEAST |= {"ema_warmup": 0, "ema_every": 1, "most_skipped": 1}


@dataclass(frozen=True)
class Training:
    """How a network is trained. Lengths of time are counted in samples (nimg), the one clock of training.

    Raises ValueError, naming the field, where a number is not finite or out of range.
    """

    duration_nimg: int = 256_000_000
    """Samples to train on."""
    batch_size: int = 1024
    """Samples of one step, over all processes."""
    microbatch: int = 0
    """Samples that a process takes at once, accumulating gradients; 0: its whole share of the batch."""
    lr: float = 2e-4
    """Peak learning rate."""
    warmup_nimg: int = 0
    """Samples over which the learning rate rises."""
    schedule: Schedule = "constant"
    """After the warm-up: constant, as in the paper, or a cosine to zero."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices."""
    clip_norm: float = 0.0
    """Largest gradient norm; longer gradients are scaled down to it; 0: off. The norm is logged in any case."""
    label_dropout: float = 0.1
    """Share of samples whose labels, and whatever else they are conditioned on, are dropped, for guidance."""
    ema_decays: tuple[float, ...] = (0.9999, 0.9998, 0.9996)
    """Decays per step of the averages kept; the first is the one sampled by default."""
    ema_start_nimg: int = 1_024_000
    """Samples during which an average is the weights themselves; then it spans the last tenth of what follows, until
    that is longer than its decay asks for. 0, as in the paper: each average begins at the initial weights and has its
    decay from the first step."""
    ema_warmup: int = 9
    """How long it spans while it is short: the decay of the m-th step after ema_start_nimg is at most
    m / (m + ema_warmup). 9: about the last tenth. 0: it has its decay from the first step after ema_start_nimg."""
    ema_every: int = 1
    """Steps between updates of the averages, each with the decay of so many steps. A run that ends between two updates
    has averages that lack the steps since the last one."""
    ema_stds: tuple[float, ...] = ()
    """Power-function averages kept as well, by their relative std, for example 0.05 0.1: of two or more, snapshots are
    kept (report.snapshot_nimg), and `jit weights posthoc RUN --std 0.08` makes the average of any std of them, after
    training (arXiv 2312.02696). They begin with the run, whatever ema_start_nimg is."""
    loss_space: Space = "v"
    """Where the error is measured: x, eps or v."""
    classification: float = 0.0
    """Weight of the cross-entropy of an auxiliary classifier beside the mean squared error of a sample (Table 11). The
    paper's 100 stands beside a sum over C H W numbers, and is 100 / (C H W) here. 0: it is not trained."""
    times: Density = field(default_factory=LogitNormal)
    """The density of training times."""
    mirror: Literal["auto", "on", "off"] = "auto"
    """Mirror half of the samples. auto: where the data say that mirrored samples are as likely, as for photographs."""
    lora: LoRA = field(default_factory=LoRA)
    """Adapters of a low rank beside frozen weights."""
    seed: int = 0
    """Seed of every draw: weights, order, mirroring, times, noise, dropped labels."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; auto: bfloat16 where this machine is faster with it (`jit bench --probe`)."""
    compile: bool | None = None
    """torch.compile the blocks; by default where it pays: large networks on GPUs and in bfloat16, long runs on CPUs."""
    checkpoint: bool = False
    """Recompute activations in the backward pass: less memory, a third more work."""
    shard: bool = False
    """Of several processes each keeps a part of weights, gradients, moments and averages (FSDP): for networks that do
    not fit otherwise, at the cost of more traffic. It may change whenever a run is resumed."""
    most_skipped: int = 16
    """A step whose loss or gradient is not finite changes no weight and is written down; after so many in a row the run
    stops. 1: at the first."""

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not least <= value <= MOST_NIMG:
                raise ValueError(f"{name} is {value}; it must be at least {least}, and at most {MOST_NIMG:,}")
        if not 0 < self.lr < inf:
            raise ValueError(f"lr is {self.lr}; it must be a number above 0")
        if not 0 <= self.clip_norm < inf or not 0 <= self.weight_decay < inf:
            raise ValueError(
                f"clip_norm ({self.clip_norm}) and weight_decay ({self.weight_decay}) must be numbers from 0 on"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; they are two numbers, each at least 0 and below 1")
        if not all(0 < decay < 1 for decay in self.ema_decays) or len(set(self.ema_decays)) != len(self.ema_decays):
            raise ValueError(f"ema_decays are {self.ema_decays}; each must lie between 0 and 1, and none come twice")
        if self.shard and self.lora.rank:
            raise ValueError("shard and lora.rank do not go together: adapters are small, and their base is frozen")
        if self.ema_stds and self.lora.rank:
            raise ValueError("ema_stds and lora.rank do not go together: snapshots of adapters cannot be summed")
        if len(set(self.ema_stds)) != len(self.ema_stds):
            raise ValueError(f"ema_stds are {self.ema_stds}; none may come twice")
        for std in self.ema_stds:
            gamma_of(std)  # raises now, not when the averages are made
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; it must be at least 0 and below 1")
        if not 0 <= self.classification < inf:
            raise ValueError(f"classification is {self.classification}; it must be a number from 0 on")
        if not hasattr(type(self.times), "__dataclass_fields__"):
            raise ValueError(f"times is {self.times!r}; it must be a frozen dataclass, so that a run can record it")

    @property
    def averages(self) -> int:
        """How many averages of the weights are kept."""
        return len(self.ema_decays) + len(self.ema_stds)

    def mirrors(self, spec: DataSpec) -> bool:
        """Whether samples of such data are mirrored."""
        return spec.mirror is not None if self.mirror == "auto" else self.mirror == "on"

    def dtype(self, device: torch.device) -> torch.dtype:
        """The precision of matrix products on a device."""
        return PRECISIONS.get(self.precision) or fast_dtype(device)
