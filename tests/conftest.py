"""What several tests share: where the real data lie, and small networks with something to say."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from justimage.networks.jit import JiT, JiTConfig

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real data (JUSTIMAGE_TEST_DATA, or ../shared/data beside the project)."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("JUSTIMAGE_TEST_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}; set JUSTIMAGE_TEST_DATA to their folder")
    return folder


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
