"""The command `jit`: which command is meant. What it needs is imported when it is called: help comes at once."""

import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 3


def _train(arguments: list[str]) -> int:
    from justimage.runs.promises import PROMISES

    if not arguments or arguments[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<12} {promise.what}" for name, promise in PROMISES.items())
        usage = "usage: jit train RECIPE [--data PATH] [--run DIR] [--init-from WEIGHTS] [OPTIONS]"
        print(f"{usage}\n\n{TRAIN}\n\nrecipes:\n{rows}\n")
        print("Every field of a recipe is an option: jit train RECIPE --help")
        return DONE if arguments else REFUSED
    recipe, rest = arguments[0], arguments[1:]
    if recipe not in PROMISES:
        raise ValueError(_no_recipe(recipe, rest, list(PROMISES)))

    from justimage.commands.train import main

    return main(recipe, rest)


def _plan(arguments: list[str]) -> int:
    from justimage.runs.promises import PROMISES

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: jit plan RECIPE [--data PATH] [--hardware NAME] [OPTIONS]\n\n{PLAN}\n")
        print("`jit train` lists the recipes. All options: jit plan RECIPE --help")
        return DONE if arguments else REFUSED
    recipe, rest = arguments[0], arguments[1:]
    if recipe not in PROMISES:
        raise ValueError(_no_recipe(recipe, rest, list(PROMISES)).replace("jit train ", "jit plan "))

    from justimage.commands.plan import main

    return main(recipe, rest)


def _sample(arguments: list[str]) -> int:
    from justimage.commands.sample import main

    return main(arguments)


def _evaluate(arguments: list[str]) -> int:
    from justimage.commands.evaluate import main

    return main(arguments)


def _sweep(arguments: list[str]) -> int:
    from justimage.commands.sweep import main

    return main(arguments)


def _inspect(arguments: list[str]) -> int:
    from justimage.commands.console import interruptible
    from justimage.commands.data import Inspect
    from justimage.commands.line import parse

    interruptible()
    return parse(Inspect, arguments, "jit data inspect")()


def _pack(arguments: list[str]) -> int:
    from justimage.commands.console import interruptible
    from justimage.commands.data import Pack
    from justimage.commands.line import parse

    interruptible()
    return parse(Pack, arguments, "jit data pack")()


def _data(arguments: list[str]) -> int:
    return _choose("jit data", DATA_COMMANDS, arguments)


def _convert(arguments: list[str]) -> int:
    from justimage.commands.console import interruptible
    from justimage.commands.convert import Convert
    from justimage.commands.line import parse

    interruptible()
    return parse(Convert, arguments, "jit convert")()


def _posthoc(arguments: list[str]) -> int:
    from justimage.commands.weights import posthoc

    return posthoc(arguments)


def _weights(arguments: list[str]) -> int:
    return _choose("jit weights", WEIGHTS_COMMANDS, arguments)


def _replay(arguments: list[str]) -> int:
    from justimage.commands.replay import main

    return main(arguments)


def _reproduce(arguments: list[str]) -> int:
    from justimage.commands.reproduce import main

    return main(arguments)


def _bench(arguments: list[str]) -> int:
    from justimage.commands.bench import main

    return main(arguments)


def _doctor(arguments: list[str]) -> int:
    from justimage.commands.doctor import main

    return main(arguments)


def _runs(arguments: list[str]) -> int:
    from justimage.commands.runs import main

    return main(arguments)


def _plot(arguments: list[str]) -> int:
    from justimage.commands.plot import main

    return main(arguments)


def _completion(arguments: list[str]) -> int:
    from justimage.commands.completion import main

    return main(arguments)


TRAIN = "Train a recipe. The same command again resumes where it stopped."
PLAN = (
    "Say what a recipe will take before it starts: memory, time, energy, money; measured here, or for other hardware."
)
Commands = dict[str, tuple[str, Callable[[list[str]], int]]]
DATA_COMMANDS: Commands = {
    "inspect": ("What training would see: a table and a contact sheet.", _inspect),
    "pack": ("Decode and crop once, into a folder that is read at memory speed.", _pack),
}
WEIGHTS_COMMANDS: Commands = {
    "posthoc": ("The average of any length from the snapshots of a run, after training.", _posthoc),
}
COMMANDS: Commands = {
    "train": (TRAIN, _train),
    "plan": (PLAN, _plan),
    "sample": ("Draw samples: PNGs, arrays or fields, and a grid.", _sample),
    "evaluate": ("Score a model, or samples made elsewhere, against data: a table, and its file.", _evaluate),
    "sweep": ("Find the weights, guidance, sampler and steps that draw the best samples.", _sweep),
    "data": ("Look at data before training, or pack them: jit data inspect, jit data pack.", _data),
    "convert": ("Convert weights between a weights folder and the official layout.", _convert),
    "weights": ("Make weights of what a run has kept: jit weights posthoc.", _weights),
    "replay": ("Run one training step of a run again: which sample and module is not finite first.", _replay),
    "reproduce": ("Run a table or figure of the paper, and say whether its claim holds.", _reproduce),
    "bench": ("Measure the speed of training and sampling on this machine, and what of.", _bench),
    "doctor": ("Name what ails a run, from what it has recorded, and what to do.", _doctor),
    "runs": ("List runs: state, how far, speed, loss, the last evaluation.", _runs),
    "plot": ("Draw the curves of runs side by side, as a PNG.", _plot),
    "completion": ("Print a script that completes commands and options: jit completion bash, or zsh.", _completion),
}


def _choose(prog: str, commands: Commands, arguments: list[str]) -> int:
    """Run the command that the first argument names; without one, or with --help, list them."""
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<11} {text}" for name, (text, _) in commands.items())
        print(
            f"usage: {prog} COMMAND [OPTIONS]\n\nDiffusion transformers directly on raw arrays.\n\ncommands:\n{rows}\n"
        )
        print(f"Options of a command: {prog} COMMAND --help")
        return DONE if arguments else REFUSED
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1, cutoff=0.5)
        hint = f"did you mean `{prog} {near[0]}`?" if near else f"there are {', '.join(commands)}"
        raise ValueError(f"{prog} has no command {name!r}; {hint}")
    return commands[name][1](rest)


def _no_recipe(given: str, rest: list[str], recipes: list[str]) -> str:
    """What to write instead of something that is not a recipe."""
    named = next((each for each in rest if each in recipes), None)
    if given.startswith("-"):
        return f"the recipe comes first: jit train {named or 'RECIPE'} {given} ...; `jit train` lists the recipes"
    if Path(given).exists() or "/" in given.rstrip("/") or given.endswith("/") or Path(given).suffix:
        fields = Path(given).suffix in (".nc", ".nc4", ".zarr")
        return (
            f"{given} is data, not a recipe; data are given with --data:\n"
            f"  jit train {named or ('fields' if fields else 'images')} --data {given}\n"
            "`jit train` lists the recipes"
        )
    near = difflib.get_close_matches(given, recipes, n=1, cutoff=0.4) or [""]
    hint = f"did you mean `jit train {near[0]}`? " if near[0] else ""
    return f"there is no recipe {given!r}; {hint}`jit train` lists the recipes"


def _in_words(error: RuntimeError) -> str:
    """What is said of an error that is nobody's mistake in this code: a process is gone, or a device is full."""
    import torch

    from justimage.pulse import Gone

    if isinstance(error, Gone):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            f"{str(error).splitlines()[0]}\nThe device has no memory left. Drawing takes less with a smaller "
            "--batch-size, replay with --microbatch N, training with --training.microbatch N or --training.checkpoint "
            "(`jit plan` says how much)"
        )
    return ""


def _leave(number: int, frame: Any) -> NoReturn:
    """Ctrl-C while libraries are being imported, which would show where; nothing has begun, and nothing is lost."""
    os._exit(INTERRUPTED)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 refused, 3 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        from justimage import __version__

        print(f"justimage {__version__}")
        return DONE
    try:
        if "" in arguments:
            after = arguments[arguments.index("") - 1] if arguments[0] else "jit"
            raise ValueError(f"what follows {after} is empty; is it a variable of the shell that is not set?")
        return _choose("jit", COMMANDS, arguments)
    except ValueError as error:
        print(f"jit: {error}", file=sys.stderr)
        return REFUSED
    except RuntimeError as error:
        said = _in_words(error)
        if not said:
            raise
        print(f"jit: {said}", file=sys.stderr)  # in every process: the first one may be the one that is gone
        return FAILED
    except BrokenPipeError:  # whoever read what is printed, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except OSError as error:
        from justimage.disk.whole import in_words

        print(f"jit: {in_words(error)}", file=sys.stderr)
        return REFUSED if error.errno == errno.ENAMETOOLONG else FAILED  # a name that nothing can have
    except KeyboardInterrupt:
        return INTERRUPTED


def run() -> int:
    """The entry point of the command, in a process of its own."""
    signal.signal(signal.SIGINT, _leave)
    return main()


if __name__ == "__main__":
    sys.exit(run())
