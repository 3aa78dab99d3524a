"""`jit completion`: a script that completes commands, recipes, options and their words in bash and zsh."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from justimage.commands.bench import Bench
from justimage.commands.convert import Convert
from justimage.commands.data import Inspect, Pack
from justimage.commands.doctor import Doctor
from justimage.commands.evaluate import Evaluate
from justimage.commands.line import options_of
from justimage.commands.main import COMMANDS, DATA_COMMANDS, DONE, WEIGHTS_COMMANDS
from justimage.commands.plan import PlanCommand
from justimage.commands.plot import Plot
from justimage.commands.replay import Replay
from justimage.commands.reproduce import Reproduce
from justimage.commands.runs import Runs
from justimage.commands.sample import Sample
from justimage.commands.sweep import SweepCommand
from justimage.commands.train import Train
from justimage.commands.weights import Posthoc
from justimage.reproductions.table import FAMILIES
from justimage.runs.recipes import RECIPES

SHELLS = ("bash", "zsh")
# After `jit COMMAND [SUBCOMMAND]` comes an option, where a dash is typed; a word, where the option before has a choice
# of them; and a file otherwise.
SCRIPT = """\
_jit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" choices=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        choices="{commands}"
    elif [ "$COMP_CWORD" -eq 2 ] && [[ "${{COMP_WORDS[1]}}" =~ ^(train|plan|bench)$ && "$word" != -* ]]; then
        choices="{recipes}"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = reproduce ]; then
        choices="{families} all"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = data ]; then
        choices="{data_commands}"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = weights ]; then
        choices="{weights_commands}"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = completion ]; then
        choices="{shells}"
    elif [ "${{word#-}}" != "$word" ]; then
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
        esac
    else
        case "${{COMP_WORDS[COMP_CWORD - 1]}}" in
{words}
        esac
    fi
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}}
complete -o default -F _jit jit
"""


def script(shell: str) -> str:
    """The script for a shell; zsh runs that of bash. Raises ValueError for other shells."""
    if shell not in SHELLS:
        raise ValueError(f"there is no completion for {shell!r}; there is for {' and '.join(SHELLS)}")
    commands: dict[str, object] = {f"train {name}": Train(recipe) for name, recipe in RECIPES.items()}
    commands |= {f"plan {name}": PlanCommand(recipe) for name, recipe in RECIPES.items()}
    commands |= {"data inspect": Inspect(""), "data pack": Pack("")}
    commands |= {"weights posthoc": Posthoc(Path()), "replay *": Replay(Path(), 0)}
    commands |= {"sample *": Sample(""), "evaluate *": Evaluate(), "sweep *": SweepCommand(())}
    commands |= {f"reproduce {name}": Reproduce(()) for name in (*FAMILIES, "all")}
    commands |= {"doctor *": Doctor(Path()), "plot *": Plot(())}
    commands |= {"convert *": Convert(Path(), Path()), "bench *": Bench(), "runs *": Runs()}
    options = {name: dict(options_of(values)) for name, values in commands.items()}
    cases = _cases({name: [f"--{option}" for option in each] for name, each in options.items()})
    cases = re.sub(r'"(\w+) \*"', r"\1\\ *", cases)
    # An option means the same in every command that has it.
    words = {f"--{option}": each for of in options.values() for option, each in of.items() if each}
    text = SCRIPT.format(
        commands=" ".join(COMMANDS),
        recipes=" ".join(RECIPES),
        families=" ".join(FAMILIES),
        data_commands=" ".join(DATA_COMMANDS),
        weights_commands=" ".join(WEIGHTS_COMMANDS),
        shells=" ".join(SHELLS),
        cases=cases,
        words=_cases(words),
    )
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + text


def _cases(choices: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f'            "{name}") choices="{" ".join(each)}" ;;' for name, each in choices.items())


def main(arguments: list[str]) -> int:
    """Print the script for the shell that the first argument names."""
    print(script(arguments[0] if arguments else "bash"), end="")
    return DONE
