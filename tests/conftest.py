"""What several tests share: where the real data lie, and small networks with something to say."""

import importlib.util
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from justimage.commands.main import main
from justimage.networks.jit import JiT, JiTConfig

# Networks this small gain nothing from a second thread, and on a busy machine each waits for the other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start


def script(path: str) -> Any:
    """A script outside of the package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parents[1] / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real data (JUSTIMAGE_TEST_DATA, or ../shared/data beside the project)."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("JUSTIMAGE_TEST_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}; set JUSTIMAGE_TEST_DATA to their folder")
    return folder


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave the user's caches alone."""
    os.environ["JUSTIMAGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("huggingface"))


@pytest.fixture(scope="session")
def cifar(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders with the first eight training images of each class of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar"
    with tarfile.open(real_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if parts[0] == "test":  # the training images come first
                break
            if member.isfile() and parts[-3] == "train" and int(Path(parts[-1]).stem) < 8:
                target = folder / parts[-2] / parts[-1]
                target.parent.mkdir(parents=True, exist_ok=True)
                inside = archive.extractfile(member)
                assert inside is not None
                target.write_bytes(inside.read())
    return folder


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for torch-fidelity's Inception, random but such that activations neither grow nor vanish."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:  # it cannot be built without weights
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = module.FeatureExtractorInceptionV3("inception", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5, generator=generator)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(net.state_dict(), path)
    return path


def small_config(size: tuple[int, ...] = (8, 8), patch: int = 4, **overrides) -> JiTConfig:
    """A network that takes milliseconds."""
    small: dict[str, Any] = {"channels": 2, "num_classes": 3, "width": 32, "depth": 2, "heads": 4, "bottleneck": 8}
    small |= {"context_tokens": 2, "context_start": 1}
    return JiTConfig(size=size, patch=(patch,) * len(size), **(small | overrides))


def small_net(size: tuple[int, ...] = (8, 8), patch: int = 4, **overrides) -> JiT:
    """The same with random weights everywhere, so that its output is not zero."""
    net = JiT(small_config(size, patch, **overrides))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return net.eval()


def jit_here(*arguments: str, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command in this process, which has torch already; the exit code."""
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("COLUMNS", "200")
    try:
        return main(list(arguments))
    except SystemExit as stop:  # the parser's own refusals
        return int(stop.code or 0)
