"""The oracle: what must be true of every outcome, whatever the door."""

import re
from dataclasses import dataclass

from .child import Outcome

MOST_LINES = 25
CODE_RAN = "code-ran"  # a file that code hidden in an input would make
# Advice of other libraries that would open the door, and names that no user knows.
FORBIDDEN = ("allow_pickle", "weights_only=False", "weights_only", "__tyro", "Traceback (most recent call last)")
KINDS = (
    "traceback",
    "hang",
    "memory",
    "left over",
    "wrong",
    "good refused",
    "exit code",
    "message",
    "harness",
)


@dataclass(frozen=True)
class Failure:
    """What is wrong with an outcome."""

    kind: str
    """One of KINDS."""
    cause: str
    """The same text for the same cause, as far as that can be told."""


def judge(outcome: Outcome) -> list[Failure]:
    """All that is wrong with an outcome; nothing if all is well."""
    if not outcome.told:
        how = "" if outcome.ended == "exit" else f"{outcome.ended}: "
        return [Failure("harness", how + _last_line(outcome.said))]
    if outcome.ended == "time":
        return [Failure("hang", "no end in time")]
    if outcome.ended == "memory":
        return [Failure("memory", "too much memory")]
    if outcome.code is None:
        return [Failure("traceback", f"died of {outcome.ended}")]
    if outcome.died_in:
        return [Failure("traceback", plain(outcome.died_in)), *_left_over(outcome)]
    if outcome.after is None:
        return [Failure("harness", _last_line(outcome.said))]
    judged = _accepted(outcome) if outcome.code == 0 else _refused(outcome)
    return [*judged, *_left_over(outcome)]


def _accepted(outcome: Outcome) -> list[Failure]:
    if any(word in outcome.said for word in outcome.told["aloud"]):
        return []
    if outcome.wrong:
        return [Failure("wrong", plain(outcome.wrong))]
    if outcome.told["expect"] == "refuse":
        return [Failure("wrong", "accepted, and should be refused")]
    return []


def _refused(outcome: Outcome) -> list[Failure]:
    told, said = outcome.told, outcome.said
    found = []
    if told["expect"] == "accept":
        found.append(Failure("good refused", plain(_last_line(said))))
    if outcome.code not in told["codes"]:
        found.append(Failure("exit code", f"{outcome.code}: {plain(_last_line(said))}"))
    found += [Failure("message", f"says {text}") for text in FORBIDDEN if text in said]
    if not said.strip():
        found.append(Failure("message", "says nothing"))
    elif len(said.strip().splitlines()) > MOST_LINES:
        found.append(Failure("message", f"more than {MOST_LINES} lines"))
    elif told["words"] and not any(_names(said, word) for word in told["words"] if word):
        found.append(Failure("message", f"names nothing: {plain(_last_line(said))}"))
    return found


def _names(said: str, word: str) -> bool:
    """Whether a text holds a word, by itself or in the plural; with _ as it is on the command line, too."""
    pattern = re.escape(word).replace("_", "[_-]").replace(r"\-", "[_-]")
    if word[0].isalnum() and len(word) < 20:  # of a long one, this may be the beginning
        pattern = rf"(?<![^\W_]){pattern}s?(?![^\W_])"
    return re.search(pattern, said, re.IGNORECASE) is not None


def _left_over(outcome: Outcome) -> list[Failure]:
    """What lies in the working folder now, and should not, or no longer, and should."""
    before, after = outcome.before or {}, outcome.after or {}
    changed = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    if any(CODE_RAN in path for path in changed):
        return [Failure("wrong", "code in the input was run")]
    may_write = tuple(f"here/{name}" for name in outcome.told["writes"]) if outcome.code != 2 else ()
    bad = [path for path in changed if not (path in may_write or path.startswith(tuple(f"{w}/" for w in may_write)))]
    hidden = [path for path in changed if path in after and path.rpartition("/")[2].startswith(".")]
    return [Failure("left over", plain(", ".join((bad or hidden)[:3])))] if bad or hidden else []


def _last_line(said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line.strip(" │╭╮╰╯─")]
    return lines[-1].strip()[:200] if lines else "nothing was said"


def plain(text: str) -> str:
    """A text in one line, without the numbers and names that differ from case to case."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'..'", text)
    text = re.sub(r"\S*/\S+", lambda found: found.group().rpartition("/")[2], text) if ":" not in text[:40] else text
    return "".join(c if c.isprintable() else " " for c in re.sub(r"\d+", "N", text))[:160]
