"""Rules of the house that a machine can check: layers, sources, the README, and what must not be there."""

import ast
import json
import re
import shlex
import typing
from pathlib import Path

import pytest
from conftest import script

from justimage.commands.bench import Bench
from justimage.commands.convert import Convert
from justimage.commands.data import Inspect, Pack
from justimage.commands.doctor import Doctor
from justimage.commands.evaluate import Evaluate
from justimage.commands.line import parse
from justimage.commands.plan import PlanCommand
from justimage.commands.plot import Plot
from justimage.commands.replay import Replay
from justimage.commands.reproduce import Reproduce
from justimage.commands.runs import Runs
from justimage.commands.sample import Sample
from justimage.commands.sweep import SweepCommand
from justimage.commands.train import Train
from justimage.commands.weights import Posthoc
from justimage.runs.promises import PROMISES
from justimage.runs.recipes import RECIPES
from justimage.samplers import Sampling, Settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "justimage"

# Which rooms a room may import from; its own files aside. The root holds three rooms: the paper, how it is run, and
# the denoiser, whose methods are shortcuts into rooms above it and import them when they are called.
BELOW_RUNS = {"disk", "paper", "running", "data", "denoiser", "weights", "sampling", "training", "evaluation"}
EDGES: dict[str, set[str]] = {
    "paper": set(),
    "disk": set(),
    "running": {"disk"},
    "networks": set(),
    "data": {"disk", "paper", "running"},
    "denoiser": {"paper", "data"},
    "weights": {"disk", "paper", "running", "networks", "data", "denoiser"},
    "sampling": {"disk", "paper", "running", "data", "denoiser"},
    "training": {"disk", "paper", "running", "data", "denoiser"},
    "evaluation": {"disk", "paper", "running", "data", "denoiser", "weights", "sampling"},
    "runs": BELOW_RUNS | {"networks"},
    "reproductions": BELOW_RUNS | {"networks", "runs"},
    "speed": BELOW_RUNS | {"networks", "runs"},
    "commands": BELOW_RUNS | {"runs", "reproductions", "speed"},
}
SHORTCUTS = {("denoiser", "weights"), ("denoiser", "sampling")}
ROOT_ROOMS = {
    "process": "paper",
    "randomness": "paper",
    "samplers": "paper",
    "denoiser": "denoiser",
    "execution": "running",
    "meeting": "running",
    "pulse": "running",
    "parallel": "running",
    "precision": "running",
    "timing": "running",
    "__main__": "commands",
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(name: str) -> str:
    """networks.jit -> networks; process -> paper. KeyError for a file of the root that has no room."""
    room, dot, _ = name.partition(".")
    return room if dot else ROOT_ROOMS[name]


def imported(path: Path, *, at_the_top: bool = False) -> set[str]:
    """Modules of the package that a file imports, anywhere in it or at its top level only."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "justimage":
            inside = node.module.removeprefix("justimage").removeprefix(".")
            if inside and (PACKAGE / (inside.replace(".", "/") + ".py")).is_file():
                found.add(inside)
            else:
                names = [f"{inside}.{alias.name}".strip(".") for alias in node.names]
                found |= {name for name in names if (PACKAGE / (name.replace(".", "/") + ".py")).is_file()}
    return found


def test_rooms_import_only_from_the_rooms_they_may():
    for path in FILES:
        room = room_of(name_of(path))
        for at_the_top in (True, False):
            allowed = {room} | EDGES[room] | (set() if at_the_top else {to for of, to in SHORTCUTS if of == room})
            for other in imported(path, at_the_top=at_the_top):
                assert room_of(other) in allowed, f"{name_of(path)} imports {other}"


def test_no_room_imports_itself_through_others():
    """The edges have no cycle, and no module imports one that imports it."""
    for edges in (EDGES, {name_of(path): imported(path, at_the_top=True) for path in FILES}):
        left = dict(edges)
        while left:
            free = [name for name, needs in left.items() if not needs & left.keys()]
            assert free, f"a cycle among {sorted(left)}"
            for name in free:
                del left[name]


def test_what_a_room_may_know():
    """The paper's files know no label, no network and no device; networks are known by their protocol."""
    for path in FILES:
        name, text = name_of(path), path.read_text()
        room = room_of(name)
        if "." not in name and name != "denoiser":
            assert not re.search("label", text, re.IGNORECASE), name
        if room == "paper":
            assert not re.search(r"\.cuda\b|\bcuda\b|\bnetworks\b", text), name
        if room not in ("networks", "reproductions") and name not in (
            "weights.official",
            "weights.official_layout",
            "runs.recipes",
            "runs.promises",
        ):
            assert not re.search(r"\bJiT|networks\.jit", text), name
        sources = re.findall(r"isinstance\((?:self\.)?source", text)
        assert not sources, f"{name} asks a source what it is; its protocol says what it can"


def test_no_state_lives_between_calls():
    """Networks keep what they tabulate in buffers, or recompute it: no cache of tensors outlives a call."""
    for path in FILES:
        text = path.read_text()
        if re.search(r"@(functools\.)?(lru_)?cache\b", text):
            assert "torch" not in text, path


def test_every_equation_and_algorithm_of_the_paper_is_named():
    text = "".join(path.read_text() for path in FILES)
    for number in range(1, 7):
        assert re.search(rf"\bEq\. {number}\b|and Eq\. {number}\b", text), f"Eq. {number}"
    for number in (1, 2):
        assert re.search(rf"\bAlg\. {number}\b|Algorithm {number}\b", text), f"Alg. {number}"


def test_promises_are_those_of_the_recipes():
    assert list(PROMISES) == list(RECIPES)
    assert all(recipe.promise is PROMISES[name] for name, recipe in RECIPES.items())


def test_settings_by_name_are_the_fields_of_sampling():
    assert typing.get_type_hints(Settings) == typing.get_type_hints(Sampling)


@pytest.mark.parametrize("module", ["process", "samplers"])
def test_the_source_is_in_the_docstring(module):
    """Every public function that computes something says where its formula comes from."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    exempt = {
        "expand",
        "evaluations",
        "linear_grid",
        "run",
        "times",
        "density",
        "land",
        "__post_init__",
        "with_settings",
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in exempt:
            inner = node.col_offset > 4 or node.name in ("step", "predict", "model", "grid")
            assert inner or re.search(r"Eq\.|Alg\.|arXiv|Table", ast.get_docstring(node) or ""), node.name


def test_every_public_thing_has_a_docstring():
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


FORBIDDEN = {
    r"torch\.load\((?!.*weights_only=True)": "unpickles code",
    r"\bimport_module\(|\bglobals\(\)|(?<![\w.])eval\(": "behaviour from strings",
    r"argparse\.ArgumentParser": "the command line is derived from dataclasses",
    r"\.cuda\(": "devices are arguments",
    r"\btorchvision\b": "the core does not import it",
}


def test_what_must_not_be_there():
    for path in FILES:
        text = path.read_text()
        for pattern, why in FORBIDDEN.items():
            assert not re.search(pattern, text), f"{path}: {pattern} ({why})"
    networks = "".join(path.read_text() for path in FILES if path.parent.name == "networks")
    assert not re.search(r"torch\.distributed|guidance|\bema\b", networks, re.IGNORECASE)
    numbers = [name_of(path) for path in FILES if re.search(r"\b127\.5\b", path.read_text())]
    assert set(numbers) <= {"data.spec", "sampling.pictures"}


def test_the_readme_is_true_to_the_code():
    text = (ROOT / "README.md").read_text()
    tables = script("docs/readme_tables.py")
    assert tables.with_tables(text) == text, "run: python docs/readme_tables.py"
    assert set(tables.ROOMS) == {path.parent.name for path in FILES} - {"justimage"}
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    code = re.findall(r"`([a-z_]+)\.([A-Za-z_]+)[(`]", text)
    for module, attribute in code:
        path = PACKAGE / f"{module}.py"
        if path.is_file():
            assert re.search(rf"(def|class) {attribute}\b", path.read_text()), f"{module}.{attribute}"


def test_measured_numbers_come_from_files():
    results = ROOT / "benchmarks" / "results"
    demo = json.loads(next(results.glob("demo-mnist-*.json")).read_text())
    measured = RECIPES["mnist-demo"].promise.measured
    assert f"{100 * demo['class_agreement']:.1f} %" in measured
    assert f"{demo['seconds']:.0f} s" in measured
    readme = " ".join((ROOT / "README.md").read_text().split())
    for name in ("mnist-demo", "cifar10"):
        sweep = json.loads(next(results.glob(f"sweep-{name}-*.json")).read_text())
        assert sweep["sweep"]["best"] == sweep["grid"]["best"]
        assert f"grid of {sweep['candidates']} settings" in readme
        assert f"with {sweep['share_of_samples']:.0%}".replace("%", " %") in readme
    assert f"{sweep['training']['nimg'] / 1000:.0f} thousand images" in readme
    data = json.loads(next(results.glob("data-*.json")).read_text())
    assert f"reaches {data['packing_over_decoding_one_core']:.2f} of the rate" in readme
    assert f"read at {data['reading']['read, 1 thread']['per_core']:,.0f} samples/s" in readme
    weather = json.loads((ROOT / "examples" / "weather" / "comparison.json").read_text())
    text = (ROOT / "examples" / "weather" / "README.md").read_text()
    assert script("examples/weather/weather.py").with_numbers(text, weather) == text
    minutes = (weather["seconds_of_training"] + weather["seconds_of_sampling"]) / 60
    assert f"{minutes:.0f} minutes" in RECIPES["fields"].promise.measured
    tuned = json.loads(next(results.glob("finetune-*.json")).read_text())["summary"]
    scratch, ours = tuned["scratch"], {name: f"{found['fd']:.2f}" for name, found in tuned.items() if "half" in name}
    longer, shorter = ([fd for name, fd in ours.items() if nimg in name] for nimg in ("40,960", "10,240"))
    said = f"reach a Frechet distance of {longer[0]}, and {longer[1]} with adapters, where {scratch['nimg']:,.0f} from"
    assert f"{said} scratch reach {scratch['fd']:.2f}" in readme
    assert f"lead to {shorter[0]} and {shorter[1]}" in readme
    assert all(found["reached_in_the_mean"] for name, found in tuned.items() if "40,960" in name)
    plans = json.loads(next(results.glob("plan-*.json")).read_text())["recipes"].values()
    for what, said in (("seconds", "of the seconds of a step"), ("peak", "of its memory")):
        off = max(abs(found["predicted_over_measured"][what] - 1) for found in plans)
        assert f"within {100 * off:.0f} % {said}" in readme
    worst = max(abs(each["ratios"]["seconds"] - 1) for found in plans for each in found["rounds"])
    assert f"up to {100 * worst:.0f} % off" in readme
    hour = json.loads(next(results.glob("hour-cifar10-*.json")).read_text())["summary"]["today"]
    minutes = hour["seconds"]["mean"] / 60
    assert f"{hour['nimg']['mean']:,.0f} images in {minutes:.0f} minutes" in RECIPES["cifar10"].promise.measured
    assert f"Frechet distance {hour['best_fd']['mean']:.2f}" in RECIPES["cifar10"].promise.measured


def test_the_readmes_commands_parse():
    """Every `jit ...` line of the README is a command that the parser takes."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("jit ")]
    assert len(commands) >= 5
    for line in commands:
        _, *words = shlex.split(line)
        if words[0] == "train":
            parse(Train, words[2:], "jit train", Train(RECIPES[words[1]]))
        elif words[0] == "plan":
            parse(PlanCommand, words[2:], "jit plan", PlanCommand(RECIPES[words[1]]))
        else:
            kinds = {"sample": Sample, "convert": Convert, "inspect": Inspect, "pack": Pack}
            kinds |= {"evaluate": Evaluate, "sweep": SweepCommand, "reproduce": Reproduce, "bench": Bench}
            kinds |= {"posthoc": Posthoc, "replay": Replay, "doctor": Doctor, "runs": Runs, "plot": Plot}
            skipped = 2 if words[0] in ("data", "weights") else 1
            parse(kinds[words[skipped - 1]], words[skipped:], "jit")
