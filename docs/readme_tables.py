"""The README's tables: recipes from RECIPES, reproductions from their results, the tree from modules' first sentences.

python docs/readme_tables.py writes them into README.md; tests/test_house.py fails where they are out of date.
"""

import ast
import json
import re
from pathlib import Path

from justimage.reproductions.table import FAMILIES
from justimage.runs.recipes import RECIPES

# Lower rooms first.
BELOW = ("disk", "networks", "data", "weights", "sampling", "training", "evaluation")
ROOMS = (*BELOW, "runs", "reproductions", "speed", "commands")
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ("justimage", *(f"justimage/{room}" for room in ROOMS))
BESIDE = ("examples", "examples/weather", "benchmarks", "docs")


def recipes() -> str:
    """One row for each recipe."""
    rows = ["| recipe | what | command | hardware | paper | measured here |", "|---|---|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        p = recipe.promise
        rows.append(f"| `{name}` | {p.what} | `{p.command}` | {p.hardware} | {p.paper} | {p.measured} |")
    return "\n".join(rows)


def reproductions() -> str:
    """One row for each table or figure of the paper, with the verdict at laptop scale where there is one."""
    rows = ["| command | in the paper | verdict on a laptop | minutes of one core |", "|---|---|---|---|"]
    for name, family in FAMILIES.items():
        path = ROOT / "reproductions" / name / "result.json"
        verdict, minutes = "", ""
        if path.is_file():
            result = json.loads(path.read_text())
            verdict = f"[{result['verdict']}](reproductions/{name}/README.md)"
            minutes = f"{(result['seconds']['training'] + result['seconds']['measuring']) / 60:.0f}"
        rows.append(f"| `jit reproduce {name}` | {family.paper} | {verdict} | {minutes} |")
    return "\n".join(rows)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return re.split(r"(?<=[.!?])(?<!Fig\.)(?<!Eq\.)(?<!Alg\.)\s", " ".join(text.split("\n\n")[0].split()))[0]


def tree() -> str:
    """One line for each Python file of the package and beside it."""
    lines = []
    for folder in (*PACKAGE, *BESIDE):
        lines.append(f"{folder}/")
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name == "__main__.py":
                continue
            lines.append(f"  {path.name:<20} {first_sentence(path)}")
    return "```\n" + "\n".join(lines) + "\n```"


def with_tables(text: str) -> str:
    """The README with all tables made anew."""
    for name, table in {"recipes": recipes(), "reproductions": reproductions(), "tree": tree()}.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))
