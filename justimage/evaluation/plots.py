"""Plots of a sweep: quality against guidance, and against the number of evaluations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from justimage.disk.whole import whole
from justimage.evaluation.sweep import Trial


def pyplot() -> Any:
    """Matplotlib's figures, without a window. Raises ValueError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'justimage[eval]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as figures

    return figures


def plot_guidance(trials: Sequence[Trial], path: Path) -> None:
    """Frechet distance against guidance, a line for each set of weights: the best of all others at each scale."""
    lines: dict[str, dict[float, Trial]] = {}
    for trial in trials:
        line = lines.setdefault(_weights(trial), {})
        scale = trial.candidate.sampling.guidance
        if scale not in line or trial.fd.value < line[scale].fd.value:
            line[scale] = trial
    _plot(lines, "guidance scale", trials, path)


def plot_nfe(trials: Sequence[Trial], path: Path) -> None:
    """Frechet distance against evaluations a sample, a line for each sampler: the best of all others at each number."""
    lines: dict[str, dict[float, Trial]] = {}
    for trial in trials:
        sampling = trial.candidate.sampling
        line = lines.setdefault(sampling.sampler, {})
        nfe = float(sampling.evaluations())
        if nfe not in line or trial.fd.value < line[nfe].fd.value:
            line[nfe] = trial
    _plot(lines, "network evaluations a sample", trials, path)


def _weights(trial: Trial) -> str:
    return " ".join(filter(None, [trial.candidate.source, trial.candidate.weights]))


def _plot(lines: dict[str, dict[float, Trial]], across: str, trials: Sequence[Trial], path: Path) -> None:
    figures = pyplot()
    figure, axes = figures.subplots(figsize=(7, 4.5), layout="constrained")
    for name, line in sorted(lines.items()):
        where = sorted(line)
        values, errors = [line[x].fd.value for x in where], [line[x].fd.error or 0.0 for x in where]
        axes.errorbar(where, values, yerr=errors, marker="o", capsize=3, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel(f"Frechet distance, {trials[0].count:,} samples")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
    figures.close(figure)
