"""Weights on disk: a folder with model.safetensors and config.json, enough by itself to sample."""

import json
import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "justimage/1"
TENSORS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that is whole or absent: written beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(whole, beside, metadata)
    os.replace(beside, path)


def write_text(path: Path, text: str) -> None:
    """A text file that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    os.replace(beside, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ValueError where it is truncated or something else."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read; it is truncated, or not a safetensors file ({error})") from error


def write_folder(folder: Path, tensors: dict[str, Tensor], config: dict) -> None:
    """Write a weights folder; files already there are replaced, each in one step."""
    write_tensors(folder / TENSORS, tensors, {"format": "pt"})
    write_text(folder / CONFIG, json.dumps({"format": FORMAT, **config}, indent=2) + "\n")
    write_text(folder / CARD, card(config))


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """A weights folder -> tensors, config. Raises ValueError where a file is missing, truncated or foreign."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}; a weights folder has {TENSORS} and {CONFIG}")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ValueError(f'{folder / CONFIG} has the format {found!r}, not "{FORMAT}": it was written by other code')
    return read_tensors(folder / TENSORS), config


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, USER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".")


def from_hub(repository: str, revision: str | None = None) -> Path:
    """Download a weights folder from the Hugging Face hub (or take it from its cache). Raises ValueError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[TENSORS, CONFIG]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{repository}: no such folder here, and the hub did not give it ({reason})") from error


def to_hub(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a weights folder; returns the commit's address. Needs `hf auth login` once."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights from justimage"))


def card(config: dict) -> str:
    """The model card: what this is and how to draw samples from it."""
    architecture, data, sampling = config["architecture"], config.get("data"), config["sampling"]
    size = "x".join(map(str, architecture["size"]))
    patch = "x".join(map(str, architecture["patch"]))
    classes = len(data["classes"]) if data else architecture["num_classes"]
    lines = [
        "---",
        "library_name: justimage",
        *([f"license: {config['licence']}"] if config.get("licence") else []),
        "tags: [diffusion, flow-matching, jit]",
        "---",
        f"# JiT, {size}, patch {patch}",
        "",
        "A plain Vision Transformer on patches of raw data that predicts "
        f"{config['prediction']['space']}, trained with flow matching (arXiv 2511.13720).",
        f"Width {architecture['width']}, depth {architecture['depth']}, {architecture['channels']} channels, "
        f"{classes} classes.",
        "",
        "```python",
        "import justimage as ji",
        "",
        'model = ji.load("this folder")',
        f"samples = model.sample({'labels=[0], ' if classes else ''}seeds=[0])",
        "```",
        "",
        f"Recommended sampling: {sampling['sampler']}, {sampling['steps']} steps, guidance {sampling['guidance']} "
        f"in the interval {tuple(sampling['interval'])}.",
    ]
    if config.get("training"):
        lines += ["", "Training:", "", *(f"- {name}: {value}" for name, value in config["training"].items())]
    return "\n".join(lines) + "\n"
