"""docs/speed.md, made from the files under benchmarks/results: what was measured about speed, and what was not.

python docs/speed.py writes it; tests/test_speed.py fails where it is out of date.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {"mnist-demo": "the demo's digits", "cifar10": "CIFAR-10"}


def found(pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Result files of a name, with what they hold."""
    for path in sorted(RESULTS.glob(pattern)):
        yield path.stem, json.loads(path.read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    """As Markdown."""
    return "\n".join("| " + " | ".join(each) + " |" for each in (head, ["---"] * len(head), *rows))


def error(value: float, by: float) -> str:
    """A number with its standard error."""
    return f"{value:.2f} ± {by:.2f}"


def rate(per_second: float) -> str:
    """Images a second, also where one takes minutes."""
    return f"{per_second:,.2f}" if per_second >= 1 else f"{per_second:.3g}"


def where(told: dict[str, Any]) -> str:
    """The machine of a result."""
    threads, kept_to = told["threads"], f" {told['kept_to']}" if told.get("kept_to") else ""
    return f"{told['device']}{kept_to}, {threads} thread{'s' if threads > 1 else ''}, torch {told['torch']}"


def benches() -> str:
    """A part for each `jit bench --out`."""
    parts = []
    for name, told in found("bench-*.json"):
        rows = []
        for part in ("training", "sampling"):
            if part not in told:
                continue
            plain = {row["what"]: row["seconds"]["median"] for row in told[part]["rows"] if "plain" in row["what"]}
            for row in told[part]["rows"]:
                median = row["seconds"]["median"]
                against = plain.get(f"{row['what']}, plainly")
                rows.append(
                    [
                        f"{row['what']} ({row['precision']})",
                        str(row["samples"]),
                        f"{1e3 * median:,.1f}",
                        f"{100 * row['share_of_peak']:.0f} %" if row["share_of_peak"] <= 1 else "",
                        f"{against / median:.2f}" if against else "",
                    ]
                )
        whole = [
            [row["what"], str(row["evaluations"]), rate(row["img_per_second"]), f"{ratio:.2f}"]
            for row in told["sampling"]["samples"]
            for ratio in (row["img_per_second"] / told["sampling"]["samples"][-1]["img_per_second"],)
        ]
        drawn = "drawn" if told["sampling"]["samples"][0]["whole"] else "added up from evaluations"
        parts.append(
            f"### {told['what']}, batch {told['sampling']['batch']}, {told['sampling']['rows'][0]['precision']}\n\n"
            f"{where(told)} (`{name}.json`).{_in_pieces(told)}\n\n"
            + table(["what", "samples", "ms", "of the matmul peak", "times plain"], rows)
            + (_consists_of(told["training"]["parts"]) if "training" in told else "")
            + f"\n\nWhole samples, {drawn}; an evaluation of the network and one of its null pass count one each:\n\n"
            + table(["preset", "evaluations", "img/s", "times plain"], whole)
        )
    return "\n\n".join(parts)


def _in_pieces(told: dict[str, Any]) -> str:
    gain = told.get("pieces_gain")
    if gain is None or told["sampling"]["rows"][0]["precision"] != "float32":
        return ""
    return f" A feed-forward layer in pieces is {gain:.2f} times as fast as at once there."


def _consists_of(parts: dict[str, float]) -> str:
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ordered if share >= 0.01)
    return f"\n\nA step of training consists of {shown}."


def presets() -> str:
    """Quality and speed of the presets, of each model."""
    parts = []
    for name, told in found("presets-*.json"):
        model = next(said for known, said in NAMES.items() if name.startswith(f"presets-{known}-"))
        rows = [
            [
                preset,
                str(row["nfe"]),
                error(row["fd"]["mean"], row["fd"]["error"]),
                f"{row['worse_by']:+.3f} ± {row['worse_by_error']:.3f}",
                "yes" if row["measurably_worse"] else "no",
                f"{row['times_faster']:.1f}" if "times_faster" in row else "",
            ]
            for preset, row in told["presets"].items()
        ]
        parts.append(
            f"{model[0].upper()}{model[1:]}, {told['training']['nimg']:,} images of training, {told['repeats']} times "
            f"{told['count']:,} samples, floor {told['floor']:.2f}; {where(told['machine'])} (`{name}.json`):\n\n"
            + table(
                ["preset", "evaluations", "Frechet distance", "beside paper, same seeds", "measurably worse", "faster"],
                rows,
            )
        )
    curves = [f"![quality against evaluations](../benchmarks/results/{name}.png)" for name, _ in found("nfe-*.json")]
    return "\n\n".join(parts + curves)


def sooner() -> str:
    """What the recipes need today of the time before."""
    rows = []
    for name, told in itertools.chain(found("sooner-*.json"), found("hour-*.json")):
        recipe, all_of = told["settings"]["options"]["recipe"], told["summary"]
        for which in ("before", "today"):
            numbers, config = all_of[which], told["settings"]["training"][which]
            rows.append(
                [
                    f"`{recipe}`, {which}",
                    f"{numbers['nimg']['mean']:,.0f}",
                    str(config["batch_size"]),
                    f"{config['lr']:g}",
                    f"{numbers['seconds']['mean']:,.0f} ± {numbers['seconds']['error']:,.0f}",
                    error(numbers["best_fd"]["mean"], numbers["best_fd"]["error"]),
                    f"{all_of['share_of_time']:.2f}" if which == "today" else "",
                    f"{where(told['machine'])} (`{name}.json`)",
                ]
            )
    return table(
        ["recipe", "images", "batch", "rate", "seconds", "Frechet distance", "of the time before", "where"], rows
    )


def growth() -> str:
    """The plots of how cost grows."""
    return "\n\n".join(
        f"{where(told['machine'])}, one thread a process (`{name}.json`); dotted: in proportion to multiply-adds."
        + ("" if "memory" in told else " Memory is of two trainings there, ours and the plain one.")
        + "\n\n"
        f"![cost against batch, tokens, width, processes and size](../benchmarks/results/{name}.png)"
        for name, told in found("growth-*.json")
    )


def missing() -> str:
    """What nobody has measured yet."""
    devices = {told["device"] for _, told in found("bench-*.json")}
    waiting = []
    if not any("NVIDIA" in each for each in devices):
        waiting.append(
            "anything on a GPU: `bash benchmarks/gpu.sh` measures it in ten minutes. Without one it is tested that "
            "blocks, noising and loss compile without a break, and that no step of training or sampling makes the host "
            "wait"
        )
    if not any("M1" in each or "Apple" in each for each in devices):
        waiting.append("Apple's processors and GPUs")
    waiting.append("several processes that train one model together: tested for equality, not for speed")
    return "\n".join(f"* {each}" for each in waiting)


def page() -> str:
    """The whole page."""
    return "\n\n".join(
        [
            "# Speed: what was measured",
            "Made by `python docs/speed.py` from `benchmarks/results`. Times are medians of rounds in turn in one "
            "process; ratios are of the same process. Plainly: the same network and steps as a first version would be "
            "written, in float32, attention by hand, two calls for guidance everywhere, averages tensor by tensor, and "
            "a look at the loss in every step (`justimage/speed/plain.py`).",
            "## Fewer evaluations",
            "`paper` is 50 steps of Heun's method. `fast` and `faster` are `deis`, which is exact where the predicted "
            "x is linear in t; `faster` also evaluates guidance at every second step only.",
            presets(),
            "## Fewer images",
            "Two trainings at a time, one thread each; the better of raw and averaged weights and of two ways to draw.",
            sooner(),
            "## The work itself",
            "Shares are of a large product: of its median in turn with the rows where a word on pieces is said, of its "
            "fastest call before them in older results. Where that came out slower than the rows, no share is given.",
            benches(),
            "## How cost grows",
            growth() or "Not measured yet: `python benchmarks/growth.py`.",
            "## Not measured",
            missing(),
            "",
        ]
    )


if __name__ == "__main__":
    (ROOT / "docs" / "speed.md").write_text(page())
