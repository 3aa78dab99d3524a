"""What users make themselves: each example runs, is short, and its result is not read without what it was made with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import justimage as ji

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "custom").glob("*.py"))
SAYS = {
    "condition": "radians from where they were asked for",
    "density": "training.times.high: 1.0 in the run, 0.9 in the command",
    "loss": "flow_matching in the command",
    "network": "20 digits drawn from the saved weights",
    "preconditioner": "give the function: load(..., preconditioner=wiener)",
    "sampler": "steps of rk4",
}
NEEDS = {"network": "network=Plain", "condition": "network=AngleJiT", "preconditioner": "preconditioner=wiener"}


def test_there_is_an_example_of_each():
    assert [path.stem for path in EXAMPLES] == sorted(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_at_most_40_lines_train_save_reload_and_draw(tmp_path, path):
    assert len(path.read_text().splitlines()) <= 40
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(path), str(tmp_path / "run")]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert SAYS[path.stem] in result.stdout
    assert (tmp_path / "run" / "weights" / "raw" / "model.safetensors").is_file()
    if path.stem == "condition":
        assert float(result.stdout.split(" radians")[0].split()[-1]) < 0.3
    if path.stem in NEEDS:
        with pytest.raises(ValueError, match="if it is yours") as refused:
            ji.load(tmp_path / "run")
        assert NEEDS[path.stem] in str(refused.value)
    else:
        assert ji.load(tmp_path / "run", device="cpu").net is not None


@pytest.mark.slow
def test_the_package_is_typed_for_its_users(tmp_path):
    """pyright finds nothing in a user's file, and a setting that does not exist in the same file."""
    text = (ROOT / "tests" / "typed_user.py").read_text()
    (tmp_path / "good.py").write_text(text)
    (tmp_path / "bad.py").write_text(text.replace("steps=20", "stepz=20").replace("tick.loss", "tick.lozz"))
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}"]}}')
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    good = subprocess.run([*words, "good.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert good.returncode == 0, good.stdout
    bad = subprocess.run([*words, "bad.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert bad.returncode == 1
    assert "stepz" in bad.stdout
    assert "lozz" in bad.stdout


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_readmes_training_script_runs(tmp_path, monkeypatch, cifar):
    """As it stands, but for the length of the training."""
    script = next(block for block in re.findall(r"```python\n(.*?)```", readme(), re.DOTALL) if "ji.build" in block)
    assert len([line for line in script.splitlines() if line.strip()]) <= 15
    (tmp_path / "photos").symlink_to(cifar)
    monkeypatch.chdir(tmp_path)
    exec(compile(script.replace("25_600", "1_280").replace("steps=50", "steps=2"), "README.md", "exec"), {})
    assert Image.open(tmp_path / "drawn.png").size[0] > 100
    assert ji.load(tmp_path / "weights" / "photos", device="cpu").num_classes == 10


def test_the_readme_names_every_public_name():
    named = set(re.findall(r"`(\w+)`", readme()))
    assert set(ji.__all__) <= named, set(ji.__all__) - named
