"""`jit completion`: a script that completes commands, recipes and options in bash and zsh."""

from pathlib import Path

from justimage.commands.convert import Convert
from justimage.commands.data import Inspect, Pack
from justimage.commands.line import option_names
from justimage.commands.main import COMMANDS, DATA_COMMANDS, DONE
from justimage.commands.sample import Sample
from justimage.commands.train import Train
from justimage.runs.recipes import RECIPES

SHELLS = ("bash", "zsh")
# After `jit COMMAND [SUBCOMMAND]` comes an option, where a dash is typed, and a file otherwise.
SCRIPT = """\
_jit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" choices=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        choices="{commands}"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = train ]; then
        choices="{recipes}"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = data ]; then
        choices="{data_commands}"
    elif [ "${{word#-}}" != "$word" ]; then
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
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
    options = {f"train {name}": _options(Train(recipe)) for name, recipe in RECIPES.items()}
    options |= {"data inspect": _options(Inspect("")), "data pack": _options(Pack(""))}
    options |= {"sample *": _options(Sample("")), "convert *": _options(Convert(Path(), Path()))}
    cases = "\n".join(f'            "{name}") choices="{text}" ;;' for name, text in options.items())
    cases = cases.replace('"sample *"', "sample\\ *").replace('"convert *"', "convert\\ *")
    text = SCRIPT.format(
        commands=" ".join(COMMANDS), recipes=" ".join(RECIPES), data_commands=" ".join(DATA_COMMANDS), cases=cases
    )
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + text


def _options(values: object) -> str:
    return " ".join(f"--{name}" for name in dict.fromkeys(option_names(values)))


def main(arguments: list[str]) -> int:
    """Print the script for the shell that the first argument names."""
    print(script(arguments[0] if arguments else "bash"), end="")
    return DONE
