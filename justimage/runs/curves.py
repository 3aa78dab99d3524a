"""The curves of runs as one picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from justimage.disk.whole import whole
from justimage.evaluation.plots import pyplot
from justimage.runs.health import Measured
from justimage.runs.record import Record, distance_of

EVERY = 2  # of the times of the grid that get a curve
LINES = ("-", "--", "-.", ":")


class Panel(NamedTuple):
    """One of the plots: what it shows, how high values are scaled, and what draws a run into it."""

    title: str
    scale: str
    draw: Callable[[Any, Record, dict[str, Any]], None]
    across: str = "images seen"


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Write a PNG with a plot for each of PANELS. A colour is a run; all share the axis of images seen.

    Raises ValueError where Matplotlib is missing.
    """
    figures = pyplot()
    figure, places = figures.subplots(2, 4, figsize=(19, 8.5), layout="constrained")
    colours = figures.rcParams["axes.prop_cycle"].by_key()["color"]
    for panel, axes in zip(PANELS, places.flat, strict=True):
        for k, record in enumerate(records):
            panel.draw(axes, record, {"color": colours[k % len(colours)], "marker": ".", "markersize": 5})
        axes.set_title(panel.title, fontsize=10)
        if axes.lines:
            axes.set_yscale(panel.scale)
            axes.set_xlabel(panel.across, fontsize=9)
            axes.grid(alpha=0.3)
        else:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "nothing recorded", ha="center", transform=axes.transAxes, color="grey")
    named = next(axes for axes in places.flat if axes.lines)
    handles = [named.plot([], [], color=colours[k % len(colours)])[0] for k in range(len(records))]
    figure.legend(handles, [str(record.folder) for record in records], loc="outside upper center", ncols=4, fontsize=9)
    with whole(path) as beside:
        figure.savefig(beside, format="png", dpi=100)
    figures.close(figure)


def _ticks(axes: Any, record: Record, look: dict[str, Any], of: Callable[[Any], float], line: str = "-") -> None:
    ticks = [each.tick for each in record.ticks]
    if ticks:
        axes.plot([tick.nimg for tick in ticks], [of(tick) for tick in ticks], linestyle=line, **look)


def _loss(axes: Any, record: Record, look: dict[str, Any]) -> None:
    _ticks(axes, record, look, lambda tick: tick.loss)


def _gradient(axes: Any, record: Record, look: dict[str, Any]) -> None:
    _ticks(axes, record, look, lambda tick: tick.grad_norm)


def _rate(axes: Any, record: Record, look: dict[str, Any]) -> None:
    _ticks(axes, record, look, lambda tick: tick.lr)


def _speed(axes: Any, record: Record, look: dict[str, Any]) -> None:
    _ticks(axes, record, look, lambda tick: tick.img_per_second)
    _ticks(axes, record, look, lambda tick: tick.img_per_second / max(1 - tick.waiting_on_data, 0.01), "--")


def _on_grid(axes: Any, record: Record, look: dict[str, Any]) -> None:
    """The loss on the grid, weighted as the run trains on its times."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for each in record.health:
        for held, curves in ((False, each.trained), (True, each.held_out)):
            for curve in curves:
                line = "--" if held and curve.weights == "raw" else "-" if curve.weights == "raw" else ":"
                lines.setdefault((curve.weights, line), []).append((each.nimg, _mean(curve.losses, each)))
    for (_, line), points in lines.items():
        axes.plot(*zip(*points, strict=True), linestyle=line, **look)


def _mean(losses: Sequence[float], measured: Measured) -> float:
    return sum(a * b for a, b in zip(losses, measured.density, strict=True)) / (sum(measured.density) or 1.0)


def _by_time(axes: Any, record: Record, look: dict[str, Any]) -> None:
    """The newest losses over t, with those of the linear yardstick."""
    last = next((each for each in reversed(record.health) if each.trained), None)
    if last is not None:
        for line, curves in (("-", last.trained), ("--", last.held_out)):
            for curve in curves[:1]:
                axes.plot(last.times, curve.losses, linestyle=line, **look)
        if last.data is not None:
            axes.plot(last.times, last.data.linear, linestyle=":", **look)


def _single_times(axes: Any, record: Record, look: dict[str, Any]) -> None:
    measured = [each for each in record.health if each.trained]
    for k, i in enumerate(range(0, len(measured[0].times), EVERY) if measured else ()):
        points = [(each.nimg, each.trained[0].losses[i]) for each in measured]
        axes.plot(*zip(*points, strict=True), linestyle=LINES[k % len(LINES)], **look)


def _distance(axes: Any, record: Record, look: dict[str, Any]) -> None:
    found = [(line["nimg"], distance_of(line)) for line in record.evaluations]
    points = [(nimg, distance) for nimg, distance in found if distance is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **{**look, "markersize": 8})


PANELS = (
    Panel("training loss", "log", _loss),
    Panel("v-loss on the fixed grid (held out: --, averages: \N{MIDDLE DOT}\N{MIDDLE DOT})", "log", _on_grid),
    Panel("v-loss by t, the newest (linear yardstick: \N{MIDDLE DOT}\N{MIDDLE DOT})", "log", _by_time, "t"),
    Panel(
        "v-loss at t = 0.06 (-), 0.31 (--), 0.56 (-\N{MIDDLE DOT}), 0.81 (\N{MIDDLE DOT}\N{MIDDLE DOT})",
        "log",
        _single_times,
    ),
    Panel("gradient norm, before clipping", "log", _gradient),
    Panel("learning rate", "linear", _rate),
    Panel("images a second (without waiting for data: --)", "linear", _speed),
    Panel("Frechet distance", "linear", _distance),
)
