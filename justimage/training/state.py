"""The state of a training run: nimg and the tensors that it has moved, saved whole or not at all."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from justimage.denoiser import Denoiser
from justimage.disk import discard, read_tensors, whole, write_tensors, write_text
from justimage.parallel import Processes
from justimage.training.ema import EMA

TENSORS, FACTS = "state.safetensors", "state.json"


class TrainingState:
    """A model, its optimizer and its averages at one position of a run; the runner is how the processes run the model.

    Everything else about a run is a function of its recipe and of nimg, so this is all that resuming restores.
    """

    def __init__(
        self,
        model: Denoiser,
        runner: nn.Module,
        processes: Processes,
        optimizer: torch.optim.Optimizer,
        ema: EMA,
        nimg: int = 0,
    ):
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.runner, self.processes = runner, processes
        self.nimg = nimg

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under a name that says what it is: net/..., ema/DECAY/..., optimizer/exp_avg/..., ..."""
        named: dict[Tensor, str] = {parameter: name for name, parameter in self.model.net.named_parameters()}
        moments = {
            f"optimizer/{kind}/{named[parameter]}": value
            for parameter, values in self.optimizer.state.items()
            for kind, value in values.items()
        }
        net = {f"net/{name}": tensor for name, tensor in self.model.net.state_dict().items()}
        return net | {f"ema/{name}": tensor for name, tensor in self.ema.state_dict().items()} | moments

    def save(self, folder: Path) -> None:
        """Write folder/NIMG/, under another name until it is complete."""
        place = folder / f"{self.nimg:09d}"
        if place.exists():
            return
        with whole(place) as beside:
            write_tensors(beside / TENSORS, self.tensors())
            write_text(beside / FACTS, json.dumps({"nimg": self.nimg}) + "\n")

    @torch.no_grad()
    def restore(self, place: Path) -> None:
        """Take over the state saved in a folder. Raises ValueError where it is damaged or another network's."""
        saved = read_tensors(place / TENSORS)
        facts = json.loads((place / FACTS).read_text())
        by_name = dict(self.model.net.named_parameters())
        moments = [name for name in saved if name.startswith("optimizer/")]
        expected = {name for name in self.tensors() if not name.startswith("optimizer/")}
        if expected != saved.keys() - set(moments):
            odd = sorted(expected ^ (saved.keys() - set(moments)))
            raise ValueError(
                f"{place} is the state of another network or other averages; they differ in {', '.join(odd[:5])}"
            )
        self.model.net.load_state_dict(
            {name.removeprefix("net/"): saved[name] for name in expected if name[:4] == "net/"}
        )
        self.ema.load_state_dict({name.removeprefix("ema/"): saved[name] for name in expected if name[:4] == "ema/"})
        for full in moments:
            _, kind, name = full.split("/", 2)
            parameter = by_name[name]
            # The step counts too: a fused optimizer keeps them beside the parameters.
            self.optimizer.state[parameter][kind] = saved[full].to(parameter.device)
        self.nimg = facts["nimg"]


def saved_states(folder: Path) -> list[Path]:
    """The complete states in a folder, oldest first."""
    complete = [path for path in folder.glob("[0-9]*") if path.name.isdecimal() and (path / FACTS).is_file()]
    return sorted(complete, key=lambda path: int(path.name))


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest states."""
    for old in saved_states(folder)[:-count]:
        discard(old)
