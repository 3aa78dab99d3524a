"""Features of networks that others have trained on photographs, as torch-fidelity has them: the numbers of the papers.

Their weights are found before the first image, or the error says how to get them. None of them is unpickled.
"""

import hashlib
import io
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from justimage.data.spec import DataSpec
from justimage.disk.tensors import sum_of
from justimage.execution import not_finite
from justimage.weights.pickles import read_checkpoint

# As torch-fidelity 0.4 has them; the hash is the beginning of the file's SHA-256.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_VARIABLE = "JUSTIMAGE_INCEPTION"
INCEPTION_HASH = "6726825d"
INCEPTION_SHAPES = {"Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "fc.weight": (1008, 2048), "fc.bias": (1008,)}
DINOV2 = "dinov2-vit-l-14"
CLIP = "clip-vit-b-32"
CLIP_VARIABLE = "JUSTIMAGE_CLIP"
CLIP_HASH = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
CLIP_URL = f"https://openaipublic.azureedge.net/clip/models/{CLIP_HASH}/ViT-B-32.pt"


class Pretrained:
    """Features of 8-bit images by a network of torch-fidelity: Features with logits where it has them.

    Grey images are repeated to three channels. The network scales images to its own size, as it was trained.
    """

    def __init__(self, net: nn.Module, name: str, size: int, classes: int, facts: dict[str, Any], device: torch.device):
        self.net, self.device = net.to(device).eval().requires_grad_(False), device
        self.name, self.size, self.classes, self.facts = name, size, classes, facts

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError where samples are not 8-bit images of one or three channels."""
        if not spec.image or len(spec.channels) not in (1, 3):
            raise ValueError(
                f"{self.name} looks at 8-bit images of 1 or 3 channels, and these are samples {spec.shape} of "
                f"{spec.dtype}; use --features fit, which looks at any data"
            )

    @torch.no_grad()
    def __call__(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw values (B, 1 or 3, H, W) uint8 -> features (B, D) float32, and logits (B, K) or None, on the device."""
        features, *logits = self.net(raw.to(self.device).expand(-1, 3, -1, -1))
        return features, logits[0] if logits else None


def inception(weights: Path | None = None, *, device: torch.device | str = "cpu") -> Pretrained:
    """Inception-v3 of 2015 as torch-fidelity has it: 2,048 features, and the logits without bias of Inception scores.

    weights: the file; by default what JUSTIMAGE_INCEPTION names, or torch-fidelity's own, downloaded once. Raises
    ValueError where there is no such file, or it holds something else.
    """
    _require("the features of Inception")
    path = _find(weights, INCEPTION_VARIABLE, INCEPTION_URL, INCEPTION_HASH)
    tensors = _read_inception(path)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    checked = io.BytesIO()  # the network unpickles what it is given: these are our own bytes
    torch.save(tensors, checked)
    checked.seek(0)
    try:
        net = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], checked)  # pyright: ignore[reportArgumentType]
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds the weights of another network: {_first(error)}. {_how(INCEPTION_URL, INCEPTION_VARIABLE)}"
        ) from error
    digest = _hash(path)
    return Pretrained(net, f"inception-2048-{digest}", 2048, 1008, {"weights": digest}, torch.device(device))


def dinov2(weights: Path | None = None, *, device: torch.device | str = "cpu") -> Pretrained:
    """DINOv2 ViT-L/14 (arXiv 2304.07193): 1,024 features, no logits.

    torch.hub fetches its code and weights from facebookresearch/dinov2, and runs that code. Raises ValueError where it
    cannot, and where weights are given.
    """
    if weights is not None:
        raise ValueError(
            f"DINOv2 comes from torch.hub with its code, not from a file ({weights}); leave --features-weights out"
        )
    _require("the features of DINOv2")
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    try:
        net = FeatureExtractorDinoV2(DINOV2, ["dinov2"])
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"DINOv2 could not be fetched from github.com/facebookresearch/dinov2 ({_first(error)}); run once where "
            f"there is a network, and copy {torch.hub.get_dir()} to the same place here"
        ) from error
    digest = sum_of(net.state_dict())[:8]
    return Pretrained(net, f"{DINOV2}-{digest}", 1024, 0, {"weights": digest}, torch.device(device))


def clip(weights: Path | None = None, *, device: torch.device | str = "cpu") -> Pretrained:
    """CLIP ViT-B/32 (arXiv 2103.00020): 512 features, no logits.

    weights: the TorchScript archive of OpenAI; by default downloaded once. Raises ValueError where there is no such
    file, or it is another.
    """
    _require("the features of CLIP")
    path = _find(weights, CLIP_VARIABLE, CLIP_URL, CLIP_HASH)
    digest = _hash(path)
    if not CLIP_HASH.startswith(digest):
        raise ValueError(
            f"{path} is not OpenAI's ViT-B/32: its SHA-256 begins with {digest}. {_how(CLIP_URL, CLIP_VARIABLE)}"
        )
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

    net = FeatureExtractorCLIP(CLIP, ["clip"], str(path))
    return Pretrained(net, f"{CLIP}-{digest}", 512, 0, {"weights": digest}, torch.device(device))


def _require(what: str) -> None:
    """Raises ValueError where the extra is not installed."""
    if find_spec("torch_fidelity") is None:
        raise ValueError(f"{what} come with torch-fidelity; install it: pip install 'justimage[eval]'")


def _find(weights: Path | None, variable: str, url: str, digest: str) -> Path:
    """The file of the weights: as given, as the environment says, or from torch's cache of downloads."""
    said = os.environ.get(variable)
    if weights is not None or said:
        path = Path(weights or said or "")
        if not path.is_file():
            source = "" if weights is not None else f", which {variable} names,"
            raise ValueError(f"there is no file {path}{source} to read weights from. {_how(url, variable)}")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"the weights could not be downloaded ({_first(error)}). {_how(url, variable)}") from error
    return path


def _how(url: str, variable: str) -> str:
    """How to get the weights, in a sentence."""
    return f"Get {url} and name the file with --features-weights PATH or the variable {variable}"


def _read_inception(path: Path) -> dict[str, Tensor]:
    """The tensors of the file, read without running anything in it, with the shapes that tell this Inception."""
    tensors = read_checkpoint(path)
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise ValueError(f"{path} is not a state dict, tensors by name. {_how(INCEPTION_URL, INCEPTION_VARIABLE)}")
    for name, shape in INCEPTION_SHAPES.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise ValueError(
                f"{path} holds the weights of another network: {name} is {found or 'missing'}; torch-fidelity's "
                f"Inception has {shape} there. {_how(INCEPTION_URL, INCEPTION_VARIABLE)}"
            )
    bad = not_finite(tensors)
    if bad:
        raise ValueError(f"{path} holds numbers that are not finite, in {', '.join(bad[:3])}; copy it again")
    return tensors


def _hash(path: Path) -> str:
    """The beginning of a file's SHA-256, as torch.hub puts it into names."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def _first(error: BaseException) -> str:
    """The first lines of what a library says, as one."""
    return " ".join(" ".join(str(error).split("\n")[:2]).split())[:200]
