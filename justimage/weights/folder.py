"""Weights on disk: a folder with model.safetensors and config.json, enough by itself to sample."""

import json
from pathlib import Path

from torch import Tensor

from justimage.data.records import read_json
from justimage.disk.tensors import read_tensors, write_tensors
from justimage.disk.whole import whole, write_text
from justimage.networks.protocol import OLDEST

FORMAT = "justimage/1"
TENSORS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
RECIPE, ADAPTERS = "recipe.json", "adapters.json"  # of a run, which has weights below it, and of adapters alone
MARKS = (CONFIG, RECIPE, ADAPTERS)  # by which a folder is known for one that can be loaded


def is_run(path: str | Path) -> bool:
    """Whether a path is a run folder."""
    return (Path(path) / RECIPE).is_file()


def write_folder(folder: Path, tensors: dict[str, Tensor], config: dict) -> None:
    """Write a weights folder; files already there are replaced, each in one step, once all are written."""
    with whole(folder / CARD) as page, whole(folder / CONFIG) as facts, whole(folder / TENSORS) as values:
        write_tensors(values, tensors, {"format": "pt"})
        write_text(facts, json.dumps({"format": FORMAT, **config}, indent=2) + "\n")
        page.write_text(card(config))


def write_sampling(folder: Path, sampling: dict) -> None:
    """Replace the recommended settings of a weights folder, in its config and on its card."""
    config = {**read_json(folder / CONFIG), "sampling": json.loads(json.dumps(sampling))}
    with whole(folder / CARD) as page, whole(folder / CONFIG) as facts:
        write_text(facts, json.dumps(config, indent=2) + "\n")
        page.write_text(card(config))


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """A weights folder -> tensors, config. Raises ValueError where a file is missing, truncated or foreign."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            inside = [each.name for each in sorted(folder.glob("*/")) if any((each / mark).is_file() for mark in MARKS)]
            hint = f"; it holds {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}: give one of these"
            least = f"; a weights folder has {TENSORS} and {CONFIG}"
            raise ValueError(f"{folder} has no {name}{hint if inside else least}")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ValueError(f'{folder / CONFIG} has the format {found!r}, not "{FORMAT}": it was written by other code')
    return read_tensors(folder / TENSORS), config


def card(config: dict) -> str:
    """The model card: what this is and how to draw samples from it."""
    architecture, data, sampling = config["architecture"], config.get("data"), config["sampling"]
    size = "x".join(map(str, architecture["size"]))
    classes = len(data["classes"]) if data else architecture.get("num_classes", 0)
    numbers = ", ".join(f"{name} {value}" for name, value in architecture.items() if isinstance(value, int | float))
    lines = [
        "---",
        "library_name: justimage",
        *([f"license: {config['licence']}"] if config.get("licence") else []),
        "tags: [diffusion, flow-matching]",
        "---",
        f"# {config.get('network', OLDEST)}, {size}",
        "",
        f"A network on raw data that predicts {config['prediction']['space']}, trained with flow matching as in "
        f"arXiv 2511.13720. {architecture['channels']} channels, {classes} classes.",
        "",
        f"Architecture: {numbers}.",
        "",
        "```python",
        "import justimage as ji",
        "",
        'model = ji.load("this folder")',
        f"samples = model.sample({'labels=[0], ' if classes else ''}seeds=[0])",
        "```",
        "",
        f"Recommended sampling: {sampling['sampler']}, {sampling['steps']} steps (shift {sampling['shift']}), guidance "
        f"{sampling['guidance']} in the interval {tuple(sampling['interval'])}.",
    ]
    if config.get("training"):
        lines += ["", "Training:", "", *(f"- {name}: {value}" for name, value in config["training"].items())]
    return "\n".join(lines) + "\n"
