"""The Hugging Face hub: weights folders from it and to it."""

from pathlib import Path

from justimage.disk.reading import first_line, nearest
from justimage.weights.folder import CONFIG, TENSORS


def from_hub(repository: str, revision: str | None = None) -> Path:
    """Download a weights folder from the Hugging Face hub (or take it from its cache). Raises ValueError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[TENSORS, CONFIG]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{repository}: there is no such folder, and the hub does not provide it ({first_line(error)})"
            f"{nearest(Path(repository))}"
        ) from error


def to_hub(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a weights folder; returns the commit's address. Needs `hf auth login` once."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights from justimage"))
