"""Agreement with values computed by the official code (tests/goldens)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from justimage.denoiser import Denoiser
from justimage.networks.jit import JiT, JiTConfig
from justimage.process import Prediction, denoising_loss, diffuse
from justimage.samplers import Sampling, guided
from justimage.weights.load import load
from justimage.weights.official import load_official
from justimage.weights.official_layout import from_official, official_config, to_official

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ["plain", "incontext"]


def golden(name: str) -> tuple[dict, dict[str, torch.Tensor], Denoiser]:
    facts = json.loads((GOLDENS / f"{name}.json").read_text())
    io = load_file(GOLDENS / f"{name}.io.safetensors")
    start = facts["config"]["in_context_start"] if facts["config"]["in_context_len"] else None
    model = load_official(GOLDENS / f"{name}.weights.safetensors", context_start=start)
    return facts, io, model


@pytest.mark.parametrize("name", NAMES)
def test_network(name):
    _, io, model = golden(name)
    with torch.no_grad():
        out = model.net(io["x"], io["t"], io["y"])
    assert (out - io["net_output"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1, 2])
def test_loss(name, scale):
    facts, io, model = golden(name)
    z = diffuse(io["x"], scale * io["noise"], io["t"])
    torch.testing.assert_close(z, io[f"z_noise{scale}"], atol=1e-6, rtol=0)
    with torch.no_grad():
        prediction = Prediction(model.net(z, io["t"], io["y"]), z, io["t"], "x", facts["t_eps"])
    loss = denoising_loss(prediction, io["x"], scale * io["noise"], "v").mean()
    torch.testing.assert_close(loss, io[f"loss_v_noise{scale}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("run", ["sample_0", "sample_1", "sample_2"])
def test_samples(name, run):
    facts, io, model = golden(name)
    r = facts["runs"][run]
    sampling = Sampling(r["steps"], r["method"], r["cfg"], tuple(r["interval"]), "official")
    y = io["sample_labels"]
    predict = guided(model, y, torch.full_like(y, model.null_label), sampling.guidance, sampling.interval)
    with torch.no_grad():
        x = sampling.run(predict, r.get("noise_scale", 1.0) * io["sample_noise"])
    assert (x - io[run]).abs().max() < 1e-4


def test_official_checkpoint_gives_the_same_output():
    io = load_file(GOLDENS / "incontext.io.safetensors")
    path = GOLDENS / "incontext.official-checkpoint.pth"
    model = load(path, weights="ema1", context_start=2, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        assert (model.net(io["x"], io["t"], io["y"]) - io["net_output"]).abs().max() < 1e-5
        other = load(path, weights="ema2", context_start=2, dtype=torch.float32, device="cpu")
        assert (other.net(io["x"], io["t"], io["y"]) - io["net_output"]).abs().max() > 1e-3
    assert (model.noise_scale, model.t_eps) == (1.0, 0.05)
    assert (model.sampling.guidance, model.sampling.interval) == (2.9, (0.1, 1.0))
    with pytest.raises(ValueError, match=r"start block.*--context-start"):
        load(path)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_identity(name):
    official = load_file(GOLDENS / f"{name}.weights.safetensors")
    config = official_config(official, context_start=2)
    back = to_official(from_official(official, config), config)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], official[key]) for key in official)


SIZES = json.loads((GOLDENS / "released-sizes.json").read_text())


@pytest.mark.parametrize("name", SIZES)
def test_released_sizes_tensor_by_tensor(name):
    facts = SIZES[name]
    config = JiTConfig.variant(name.removeprefix("JiT-"), size=facts["image_size"])
    with torch.device("meta"):
        net = JiT(config)
        official = {key: torch.empty(shape) for key, shape in facts["tensors"].items()}
    assert {key: list(t.shape) for key, t in to_official(net.state_dict(), config).items()} == facts["tensors"]
    assert official_config(official, config.context_start).width == config.width
    read = from_official(official, official_config(official, config.context_start))
    assert {key: t.shape for key, t in read.items()} == {key: t.shape for key, t in net.state_dict().items()}
    assert net.num_parameters == facts["trainable"]
    assert net.num_parameters + net.positions.numel() == facts["parameters"]


@pytest.mark.parametrize(
    ("name", "size", "parameters"), [("G/16", 256, 2.007e9), ("G/32", 512, 2.012e9), ("B/64", 1024, 141e6)]
)
def test_sizes_without_released_weights(name, size, parameters):
    with torch.device("meta"):
        net = JiT(JiTConfig.variant(name, size=size))
    assert net.num_parameters == pytest.approx(parameters, rel=5e-3 if name == "B/64" else 3e-4)
