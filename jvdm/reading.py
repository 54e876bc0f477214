"""The one step that reads JSON from outside: bounded, and of the types that its dataclass says.

What comes in may have been edited, cut off or made to harm: whatever is wrong with it is an error
that names the file and the field.
"""

import dataclasses
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jvdm.errors import ConfigError, JvdmError, shortened

MAX_BYTES = 16 * 1024 * 1024  # of a JSON file; ours have some kilobytes
DEEPEST = 64  # lists and objects inside one another
_SHOWN = 60  # characters of a value in a message
_Made = TypeVar("_Made")


class _Mistyped(ValueError):
    """A field of another type; the message says which."""


def parse_json(
    text: str | bytes,
    where: str | Path,
    noun: str,
    kind: type[JvdmError] = ConfigError,
    fix: str = "",
) -> Any:
    """Returns what JSON text holds, which should be a `noun`.

    Raises:
        JvdmError: Of `kind`, if it is no JSON, too long or too deep, or has a name twice.
    """
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"{len(text):,} bytes, and {MAX_BYTES:,} are the most")
        data = json.loads(text, object_pairs_hook=_unique)
        _check_depth(data)
        return data
    except (ValueError, RecursionError) as error:
        why = "it is too deep" if isinstance(error, RecursionError) else str(error)
        raise kind(f"{where} is not a {noun}", f"not readable as JSON: {why}", fix) from error


def read_json(path: Path, noun: str, kind: type[JvdmError] = ConfigError, fix: str = "") -> Any:
    """Returns what a JSON file holds, which should be a `noun`.

    Raises:
        JvdmError: Of `kind`, if it cannot be read, is no JSON, too long or too deep.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise kind(f"{path} cannot be read", error.strerror or str(error), fix) from error
    return parse_json(text, path, noun, kind, fix)


def made_of(
    made: type[_Made],
    data: Any,
    where: str | Path,
    error: type[JvdmError] = ConfigError,
    fix: str = "",
) -> _Made:
    """Returns the dataclass whose fields JSON data holds, each of its type.

    Args:
        made: A dataclass; fields may be numbers, text, mappings, tuples and dataclasses.
        data: What was read.
        where: The file, for the message.
        error: What is raised.
        fix: What to do about it.

    Raises:
        JvdmError: Of the kind `error`, if a field is missing, unknown or of another type.
    """
    try:
        return _made(made, data, "")
    except _Mistyped as mistyped:
        raise error(f"{where} is not a {made.__name__.lower()}", str(mistyped), fix) from mistyped


def checked(hint: Any, value: Any, field: str, where: str | Path, fix: str = "") -> Any:
    """Returns a value of JSON as its type asks for.

    Raises:
        ConfigError: If it is of another type; it names the field.
    """
    try:
        return _value(hint, value, field)
    except _Mistyped as error:
        raise ConfigError(f"{where} cannot be used", str(error), fix) from error


def _made(made: Any, data: Any, field: str) -> Any:
    if not isinstance(data, Mapping):
        raise _mistyped(field or "it", "an object", data)
    fields = {item.name: item for item in dataclasses.fields(made)}
    unset = dataclasses.MISSING
    needed = [n for n, f in fields.items() if f.default is unset and f.default_factory is unset]
    if missing := [name for name in needed if name not in data]:
        raise _Mistyped(f"{field + ': ' if field else ''}{', '.join(missing)} missing")
    if unknown := sorted(map(str, data.keys() - fields.keys())):
        names = shortened(", ".join(unknown), _SHOWN)
        raise _Mistyped(f"{field + ': ' if field else ''}{names} not known")
    hints, prefix = typing.get_type_hints(made), f"{field}." if field else ""
    return made(**{name: _value(hints[name], data[name], prefix + name) for name in data})


def _value(hint: Any, value: Any, field: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _value(next(kind for kind in inner if kind is not type(None)), value, field)
    if origin is typing.Literal:
        if value not in inner or isinstance(value, list | dict):
            raise _mistyped(field, f"one of {', '.join(map(str, inner))}", value)
        return value
    if dataclasses.is_dataclass(hint):
        return _made(hint, value, field)
    if origin is tuple:
        return _tuple(inner, value, field)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _mistyped(field, "an object", value)
        return {key: _value(inner[1], item, f"{field}.{key}") for key, item in value.items()}
    return _plain(hint, value, field)


def _tuple(inner: tuple[Any, ...], value: Any, field: str) -> tuple[Any, ...]:
    is_open = inner[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not is_open and len(value) != len(inner):
        raise _mistyped(field, "a list" if is_open else f"a list of {len(inner)}", value)
    kinds = inner[:1] * len(value) if is_open else inner
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_value(kind, item, f"{field}[{index}]") for index, (kind, item) in pairs)


def _plain(kind: Any, value: Any, field: str) -> Any:
    given: Any = str if kind is Path else kind
    whole = type(value) is int and given is float and abs(value) < 2**1000
    if type(value) is not given and not whole:
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise _mistyped(field, names.get(given, str(given)), value)
    if given is float and not math.isfinite(value):
        raise _mistyped(field, "finite", value)
    return Path(str(value)) if kind is Path else given(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; raises if it has a name twice, of which Python keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = repr(counts.most_common(1)[0][0])
        raise ValueError(f"{shortened(twice, _SHOWN)} stands there twice")
    return found


def _check_depth(data: Any) -> None:
    """Raises if lists and objects are deeper than anything that jvdm writes."""
    level, depth = [data], 0
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is deeper than {DEEPEST} levels")
        level = [x for item in level for x in (item.values() if type(item) is dict else item)]


def _mistyped(field: str, needed: str, value: Any) -> _Mistyped:
    field, given = (shortened(text, _SHOWN) for text in (field, repr(value)))
    return _Mistyped(f"{field} must be {needed}, not {given}")
