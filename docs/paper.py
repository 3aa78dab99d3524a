"""docs/paper.md, made from the results of `jit reproduce` and from the code: the paper claim by claim, line by line.

python docs/paper.py writes it; tests/test_reproductions.py fails where it is out of date.
"""

import ast
import json
from pathlib import Path
from typing import Any

from justimage.reproductions.result import WHY, statements_table, table, their_table
from justimage.reproductions.table import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "reproductions"

# What stands in the paper -> where it is here: a file and a name in it, or a command.
MAP: tuple[tuple[str, str, str], ...] = (
    ("Eq. 1, z = t x + (1 - t) eps", "justimage/process.py", "diffuse"),
    ("Eq. 2, v = x - eps", "justimage/process.py", "velocity"),
    ("Eq. 3, the loss in v; footnote 4, its weights", "justimage/process.py", "denoising_loss"),
    ("Eq. 4, dz/dt = v along a time grid", "justimage/samplers.py", "integrate"),
    ("Eq. 5, v from x; Table 1, all nine conversions", "justimage/process.py", "Prediction.to"),
    (
        "Eq. 6, x-prediction with the loss in v; Alg. 1, a step of training",
        "justimage/training/loss.py",
        "flow_matching",
    ),
    ("Alg. 1, the loop around it", "justimage/training/loop.py", "train"),
    ("Alg. 2, a step of sampling, Euler's", "justimage/samplers.py", "euler"),
    ("Heun's method, the default of 50 steps", "justimage/samplers.py", "heun"),
    ("Section 3.3, logit-normal times; Table 3, their mean", "justimage/process.py", "LogitNormal"),
    ("Section 3.3 and Fig. 2, the toy network", "justimage/networks/mlp.py", "ToyMLP"),
    ("Section 3.3 and Fig. 2, the toy's data", "justimage/reproductions/data.py", "Plane"),
    ("Section 4 and Fig. 3, the plain transformer on patches", "justimage/networks/jit.py", "JiT"),
    ("Fig. 4, the bottleneck embedding", "justimage/networks/patch.py", "PatchEmbedding"),
    ("Table 4, SwiGLU", "justimage/networks/layers.py", "SwiGLU"),
    ("Table 4, RMSNorm", "justimage/networks/layers.py", "RMSNorm"),
    ("Table 4, rotary positions", "justimage/networks/position.py", "rotations"),
    ("Table 4, qk-norm", "justimage/networks/layers.py", "Attention"),
    ("Table 4, in-context class tokens", "justimage/networks/conditions.py", "Conditions"),
    ("Table 4, guidance in an interval", "justimage/samplers.py", "guided"),
    ("Table 9, the sizes B to G", "justimage/networks/jit.py", "JiTConfig.variant"),
    ("Table 9, the trainings", "justimage/runs/recipes.py", "_imagenet"),
    ("Table 9, averages of the weights", "justimage/training/ema.py", "EMA"),
    ("Table 10, EDM's pre-conditioner", "justimage/denoiser.py", "edm_scalings"),
    ("Table 10, the linear pre-conditioner", "justimage/denoiser.py", "linear_scalings"),
    ("Table 11, the classifier behind an early block", "justimage/networks/layers.py", "Classifier"),
    ("The search of average and guidance for each model", "justimage/evaluation/sweep.py", "sweep"),
    ("FID", "justimage/evaluation/metrics.py", "frechet_distance"),
    ("Tables 5 and 6, parameters and flops", "justimage/networks/cost.py", "cost_of"),
    ("Table 13, precision and recall", "justimage/evaluation/neighbours.py", "precision_recall"),
)
# What is no definition, and no table of trainings.
BESIDE: tuple[tuple[str, str], ...] = (
    ("Fig. 1, the manifold assumption", "`python examples/why_x.py` draws it from two sides"),
    ("Figs. 5, 8, 9, 10 and 11, samples", "`jit sample runs/b16-256 --preset paper`, once such a run exists"),
    ("Tables 7 and 8, the comparison with other work", "recipes `b16-256` to `g32-512`; not run here"),
    ("Appendix A, the settings", "`jit train b16-256 --help` lists all of them"),
)
INTRODUCTION = """\
# The paper, claim by claim

Li & He, *Back to Basics: Let Denoising Generative Models Denoise*, [arXiv 2511.13720](https://arxiv.org/abs/2511.13720).
Every row below is a command that runs on a laptop, `jit reproduce NAME`; the same table of trainings runs at the
paper's scale with `--scale paper --data imagenet` (`toy` makes its own data). This page is made from
`reproductions/*/result.json`, which the commands have written. At laptop scale the data are 5,000 digits and most
networks have less than a million parameters: what holds here is the statement, not the number, and what does not hold
here may hold at scale."""


def line_of(path: str, name: str) -> int:
    """The line of a definition (`Class.method` too) in a file. Raises ValueError where there is none."""
    nodes: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
    line = 0
    for part in name.split("."):
        found = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part]
        if not found:
            raise ValueError(f"{path} has no {name}")
        line, nodes = found[0].lineno, found[0].body
    return line


def results() -> dict[str, dict[str, Any]]:
    """The results at laptop scale that there are, in the paper's order."""
    places = {name: RESULTS / name / "result.json" for name in FAMILIES}
    return {name: json.loads(path.read_text()) for name, path in places.items() if path.is_file()}


def page() -> str:
    """The whole of it."""
    found = results()
    parts = [INTRODUCTION, _overview(found)]
    parts += [_section(name, result) for name, result in found.items()]
    return "\n\n".join([*parts, _map()]) + "\n"


def _overview(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| command | in the paper | claim | verdict | minutes of one core |", "|---|---|---|---|---|"]
    for name, result in found.items():
        minutes = (result["seconds"]["training"] + result["seconds"]["measuring"]) / 60
        lines.append(
            f"| [`jit reproduce {name}`](#{name}) | {result['paper']} | {result['claim']} | **{result['verdict']}** | "
            f"{minutes:.0f} |"
        )
    return "\n".join(lines)


def _section(name: str, result: dict[str, Any]) -> str:
    why = (RESULTS / name / WHY).read_text().strip() if (RESULTS / name / WHY).is_file() else ""
    lines = [
        f"## {name}",
        f"{result['paper']}. {result['claim']}",
        f"**{result['verdict'].capitalize()}.** {why}".strip(),
        statements_table(result["statements"]),
    ]
    for part in result["parts"]:
        lines.append(f"`{part['tables'][0]}`, {part['name']}, here:\n\n{table(result, part, part['tables'][0])}")
        if part["theirs"]:
            lines.append(f"The paper's ({result['number']['theirs']}):\n\n{their_table(part)}")
    pictures = [picture for part in result["parts"] for picture in part["pictures"]]
    lines += [f"![{picture}](../reproductions/{name}/{picture}.png)" for picture in pictures[:1]]
    lines.append(f"All numbers and pictures: [reproductions/{name}](../reproductions/{name}/README.md).")
    return "\n\n".join(lines)


def _map() -> str:
    lines = ["## Where the paper is in the code", "| in the paper | here |\n|---|---|"]
    rows = []
    for what, path, name in MAP:
        rows.append(f"| {what} | [`{name}`](../{path}#L{line_of(path, name)}) in `{path}` |")
    rows += [f"| {family.paper} | `jit reproduce {name}` |" for name, family in FAMILIES.items()]
    rows += [f"| {what} | {where} |" for what, where in BESIDE]
    return "\n\n".join(lines) + "\n" + "\n".join(rows)


if __name__ == "__main__":
    (ROOT / "docs" / "paper.md").write_text(page())
