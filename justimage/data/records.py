"""Frozen dataclasses from plain values, as JSON holds them: every field is checked against its annotation."""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
PLAIN: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_short = Repr()
_short.maxstring = _short.maxother = 60


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError, naming the file, where it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def from_plain(kind: type[Record], values: Any, where: str, part: str = "") -> Record:
    """A dataclass from a dictionary of plain values: lists become tuples, dictionaries the dataclasses they stand for.

    where, part: the file that the values are from, and which part of it they are, for messages. A field that has a
    default may be absent. Raises ValueError, with the field, its value and what is wanted, for values of another type,
    for fields that do not exist or are missing, and where the dataclass itself refuses.
    """
    return _record(kind, values, f"{where}: {part}") if part else _record(kind, values, where, f"{where}: ")


def _record(kind: type[Record], values: Any, where: str, prefix: str = "") -> Record:
    if not is_dataclass(kind):
        raise ValueError(f"{where} is described by {kind}, which is not a dataclass")
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {_short.repr(values)}; an object with the fields of {kind.__name__} is needed")
    known = {item.name: item for item in fields(kind) if item.init}
    unknown = [name for name in values if name not in known]
    needed = [name for name, item in known.items() if item.default is item.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    for what, names in (("has unknown fields", unknown), ("lacks the fields", missing)):
        if names:
            raise ValueError(f"{where} {what} {', '.join(map(_short.repr, names[:5]))}")
    made = {name: checked_field(kind, name, value, prefix or f"{where}.") for name, value in values.items()}
    try:
        return kind(**made)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def known_fields(kind: type, values: Any) -> Any:
    """The values without those that `kind` has no field for: others may write more into a file than is read from it."""
    if not isinstance(values, Mapping):
        return values
    known = {item.name for item in fields(kind)}
    return {name: value for name, value in values.items() if name in known}


def from_known(kind: type[Record], values: Any, where: str, part: str = "") -> Record:
    """As `from_plain`, of the values that `kind` has a field for."""
    return from_plain(kind, known_fields(kind, values), where, part)


def checked_field(kind: type, name: str, value: Any, prefix: str) -> Any:
    """A plain value as what a field of a dataclass holds. ValueError, with prefix and name, where its type differs."""
    try:
        hint = get_type_hints(kind, include_extras=True)[name]
    except NameError:  # a user's own class may name types that only its type checker sees
        hint = Any
    return _checked(hint, value, f"{prefix}{name}")


def replaced(values: Record, settings: Mapping[str, Any], where: str = "") -> Record:
    """A dataclass with the fields at dotted paths replaced by plain values, all at once, as `checked_field` takes them.

    Raises ValueError, with `where` in front, for a path that leads nowhere or into what another replaces, and for
    values that a dataclass refuses.
    """
    known = {item.name for item in fields(values)} if is_dataclass(values) else set()
    inner: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        first, _, rest = path.partition(".")
        if first not in known:
            raise ValueError(f"{where}{path}: {type(values).__name__} has no field {first!r}")
        some = inner.setdefault(first, {})
        some[rest] = value
        if "" in some and len(some) > 1:
            raise ValueError(f"{where}{path}: {first} is replaced as a whole as well; give one of the two")
    made = {
        name: checked_field(type(values), name, some[""], where) if "" in some else replaced(at, some, where)
        for name, some in inner.items()
        for at in [getattr(values, name)]
    }
    return replace(values, **made)  # type: ignore[type-var]


def _checked(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _checked(arguments[0], value, where)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is Literal:
        if any(type(value) is type(each) and value == each for each in arguments):
            return value
        raise ValueError(f"{where} is {_short.repr(value)}; it must be {' or '.join(map(repr, arguments))}")
    if hint is types.NoneType or hint is None:
        fits = value is None
    elif hint is bool or hint is str:
        fits = isinstance(value, hint)
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif hint is float:  # whole numbers stay what they are: a fingerprint may hold their text
        fits = isinstance(value, int | float) and not isinstance(value, bool) and _is_a_float(value)
    elif origin is tuple or hint is tuple:
        return _as_tuple(arguments, value, where)
    elif origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {_short.repr(value)}; an object is needed")
        return dict(value)
    elif isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, value, where)
    else:  # Any, or a type of the user's own, which its owner checks
        return _tuples(value)
    if not fits:
        raise ValueError(f"{where} is {_short.repr(value)}; {PLAIN.get(hint, 'null')} is needed")
    return value


def _one_of(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in hints:
        return None
    refusals = []
    for hint in hints:
        if hint is not types.NoneType:
            try:
                return _checked(hint, value, where)
            except ValueError as error:
                refusals.append(error)
    raise refusals[0]


def _as_tuple(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} is {_short.repr(value)}; a list is needed")
    if not hints:
        return tuple(map(_tuples, value))
    if hints[-1] is Ellipsis and hints[0] in PLAIN and all(type(item) is hints[0] for item in value):
        return tuple(value)  # coordinates may be millions
    each = [hints[0]] * len(value) if hints[-1] is Ellipsis else list(hints)
    if len(each) != len(value):
        raise ValueError(f"{where} is {_short.repr(value)}; a list of {len(each)} is needed")
    return tuple(_checked(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(each, value, strict=True)))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _is_a_float(value: float) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True
