"""What is measured of a run that draws images: quality with the best settings, chosen for each cell as in the paper."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from justimage.data.spec import Source, evenly
from justimage.denoiser import Denoiser
from justimage.evaluation.draws import Draws, draws_of, shared_up
from justimage.evaluation.evaluate import evaluate, hash_of, name_of
from justimage.evaluation.features import Features, Resizing, open_features
from justimage.evaluation.fitted import Progress
from justimage.evaluation.judge import Judge
from justimage.evaluation.reference import Reference, reference_of
from justimage.evaluation.rows import RowStore
from justimage.evaluation.sweep import Candidate, Halving, NothingFinite, Space, sweep
from justimage.process import denoising_loss, diffuse
from justimage.randomness import noise
from justimage.reproductions.family import Measured, Setup
from justimage.runs.evaluations import BEST
from justimage.runs.folder import LOG
from justimage.weights.load import load, swap_weights, weight_sets

SHOWN = 20  # samples kept for pictures
SHOWN_AT_A_TIME = 4  # samples of each time
UNSEEN_NOISE = 2**40  # training takes its seeds from hashes
KEPT_SCORES = ("precision", "recall", "agreement", "inception_score")


@dataclass(frozen=True)
class Quality:
    """The Frechet distance of samples with fresh seeds; by a sweep of each run the best weights, and the best of the
    guidance scales and intervals that there are.

    The paper chose averages and guidance for every model, each ablation too, by a search on 8,000 samples.
    """

    count: int = 400
    """Samples that are judged."""
    search: int = 200
    """Samples of a candidate of the sweep that gets to its end."""
    guidance: tuple[float, ...] = (1.0, 1.5, 2.5)
    intervals: tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.1, 1.0))
    features: Literal["fit", "inception"] = "fit"
    seen_at: int = 28
    """Side length at which fitted features look at images; 0: their own."""
    also_at: tuple[int, ...] = ()
    """Side lengths, of a smaller and of a larger size, to which samples are resized and judged there too, against data
    of that size: fd_small and fd_large."""
    batch_size: int = 100

    def prepare(self, setup: Setup, given: str, device: torch.device, progress: Progress | None = None) -> None:
        """Fit the features and look at the reference. Raises ValueError for guidance on data without labels."""
        judge = self.judge(setup, given, device, progress)
        if not judge.spec.needs and 1.0 not in self.guidance:
            raise ValueError(f"guidance of {self.guidance[0]:g} needs labels, and {given} has none; label the images")
        for length in self.also_at:
            self.judge_at(setup, given, length, device, progress)

    def judge(self, setup: Setup, given: str, device: torch.device, progress: Progress | None = None) -> Judge:
        """The judge of samples of this setup's size."""
        size, channels = setup.recipe.network.size, setup.recipe.network.channels
        source = _indexed(setup, size, channels, given)
        features = self._features(setup, self.seen_at, given, device, progress)
        return Judge(features, _moments(source, features, given, device, progress), source.spec)

    def judge_at(
        self, setup: Setup, given: str, length: int, device: torch.device, progress: Progress | None = None
    ) -> Judge:
        """The judge of samples of this setup's size that are resized to another: by data and features of that one."""
        size, channels = setup.recipe.network.size, setup.recipe.network.channels
        there = _indexed(setup, (length, length), channels, given)
        features = self._features(setup, length, given, device, progress)
        reference = _moments(there, features, given, device, progress)
        return Judge(features, reference, replace(there.spec, size=tuple(size)))

    def _features(
        self, setup: Setup, length: int, given: str, device: torch.device, progress: Progress | None
    ) -> Features:
        size = (length, length) if length else tuple(setup.recipe.network.size)
        if self.features != "fit":
            found = open_features(self.features, device=device)
            return Resizing(found, size) if length else found
        source = _indexed(setup, size, setup.recipe.network.channels, given)
        return Resizing(open_features("fit", source, device=device, progress=progress), size)

    def __call__(self, setup: Setup, run: Path, given: str, device: torch.device, progress: Progress) -> Measured:
        """Sweep, then judge fresh samples of the winner."""
        judge = self.judge(setup, given, device)
        sets = [name for name in weight_sets(run) if name != BEST.name]
        model = load(run, weights=sets[0], device=device)
        space = Space(guidance=self.guidance, intervals=self.intervals)
        # What the recipe recommends is no candidate beside those of the table.
        first = replace(setup.recipe.sampling, guidance=self.guidance[0], interval=self.intervals[0])
        candidates = space.candidates([(str(run), name) for name in sets], first, guided=bool(model.needs))
        try:
            best = self._choose(model, judge, candidates, run, progress)
        except NothingFinite as error:
            return Measured({}, {"failed": str(error)})
        swap_weights(model, run, best.weights)
        search = shared_up(self.search, model)
        draws = draws_of(model, shared_up(self.count, model), search)  # seeds that the sweep has not seen
        numbers, facts, shown = self._judge(model, judge, draws, best, run, progress)
        for name, length in zip(("fd_small", "fd_large"), self.also_at, strict=False):
            at, _, _ = self._judge(model, self.judge_at(setup, given, length, device), draws, best, run, progress)
            numbers[name] = at["fd"]
        chosen = {
            "weights": best.weights,
            "guidance": best.sampling.guidance,
            "interval": list(best.sampling.interval),
        }
        return Measured(numbers, {"chosen": chosen, "candidates": len(candidates), **facts}, {"shown": shown})

    def _choose(
        self, model: Denoiser, judge: Judge, candidates: list[Candidate], run: Path, progress: Progress
    ) -> Candidate:
        if len(candidates) == 1:
            return candidates[0]
        search = shared_up(self.search, model)
        draws = draws_of(model, search)
        halving = Halving(search, first=1 / 2, kept=1 / 4, finalists=2)
        found = sweep(
            model, judge, draws, candidates, halving, run / "sweep", batch_size=self.batch_size, progress=progress
        )
        return found.best.candidate

    def _judge(
        self, model: Denoiser, judge: Judge, draws: Draws, best: Candidate, run: Path, progress: Progress
    ) -> tuple[dict[str, float], dict[str, Any], np.ndarray]:
        rows = run / "rows" / name_of(hash_of(model), best.sampling, judge, draws)
        scores = evaluate(
            model,
            judge,
            draws,
            rows,
            sampling=best.sampling,
            batch_size=self.batch_size,
            progress=progress,
        )
        assert scores is not None
        numbers = {name: scores[name].value for name in ("fd", *KEPT_SCORES) if name in scores}
        facts = {"fd_error": scores["fd"].error, "floor": judge.reference.floor, "features": judge.features.name}
        facts |= {"held_out_accuracy": judge.features.facts.get("held_out_accuracy"), "nfe": scores.facts["nfe"]}
        return numbers, facts, np.array(RowStore(rows, judge.looker().kinds())["raw"][:SHOWN])


def _indexed(setup: Setup, size: tuple[int, ...], channels: int, given: str) -> Source:
    source = setup.data.open(tuple(size), channels, given)
    if source.indexed is not True:
        raise ValueError(f"{given} is a stream; reproductions compare with data that can be read in any order: pack it")
    return source


def _moments(
    source: Source, features: Features, given: str, device: torch.device, progress: Progress | None
) -> Reference:
    """The reference without what the numbers of reproductions do not ask for."""
    found = reference_of(source, features, path=given, progress=progress, device=device)
    kept = {"features": found.rows["features"]}
    return replace(found, rows=kept, small=None)


@dataclass(frozen=True)
class Denoising:
    """How far off a single step is, at given times, and how high the loss lies (Fig. 7 and appendix B.1).

    loss: the mean over the last fifth of the training, from its log. loss_at_T: at one time, over samples of the data
    with noise that training has not seen. All are mean squares of v - v_theta per number of a sample.
    """

    times: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    count: int = 500

    def prepare(self, setup: Setup, given: str, device: torch.device, progress: Progress | None = None) -> None:
        """Nothing is shared. Raises ValueError for a stream."""
        _indexed(setup, setup.recipe.network.size, setup.recipe.network.channels, given)

    @torch.no_grad()
    def __call__(self, setup: Setup, run: Path, given: str, device: torch.device, progress: Progress) -> Measured:
        """The losses; and for pictures x predicted at each time, and the curve of the training."""
        model = load(run, weights="raw", device=device)
        assert model.spec is not None
        source = _indexed(setup, setup.recipe.network.size, setup.recipe.network.channels, given)
        chosen = evenly(len(source), self.count).tolist()
        items = [source[i] for i in chosen]
        x = model.spec.encode(torch.from_numpy(np.stack([raw for raw, _ in items])).to(device))
        y = {"labels": torch.tensor([int(y["labels"]) for _, y in items], device=device)} if model.needs else None
        eps = model.noise_scale * noise(range(UNSEEN_NOISE, UNSEEN_NOISE + len(x)), x.shape[1:], device)
        numbers, denoised = {"loss": _mean_loss(run)}, []
        for k, time in enumerate(self.times):
            t = torch.full((len(x),), time, device=device)
            prediction = model(diffuse(x, eps, t), t, y)
            numbers[f"loss_at_{time:g}"] = float(denoising_loss(prediction, x, eps, "v").mean())
            denoised.append(prediction.to("x")[:: -(-len(x) // SHOWN_AT_A_TIME)])  # of several classes
            progress(k + 1, len(self.times), "denoising")
        shown = model.spec.decode(torch.cat(denoised)).cpu().numpy()
        log = [(tick["nimg"], tick["loss"]) for tick in _log(run)]
        return Measured(numbers, {}, {"shown": shown, "curve": np.array(log)})


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]


def _mean_loss(run: Path) -> float:
    ticks = _log(run)
    last = [tick["loss"] for tick in ticks if tick["nimg"] > 0.8 * ticks[-1]["nimg"]]
    return float(np.mean(last))
