"""The flags of a verb: read from its dataclass of options, refused with what was meant."""

import collections
import contextlib
import dataclasses
import io
import os
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from jvdm.errors import ConfigError
from jvdm.recipes import nearest


@dataclasses.dataclass(frozen=True)
class Verb:
    """Where a verb lives and how it is called.

    Attributes:
        module: Module with `run` and `text`.
        options: Name of its dataclass of options.
        positional: Fields that are given without a flag.
        summary: One line for `jvdm --help`.
        compiles: Whether compiled programs are worth keeping.
        shared: Field with the folder that all processes see, where several can run it.
    """

    module: str
    options: str
    positional: tuple[str, ...]
    summary: str
    compiles: bool = True
    shared: str = ""


def parse(name: str, verb: Verb, module: Any, arguments: list[str], experiment: Any = None) -> Any:
    """Reads the flags of a verb, `--json`, and the fields of an experiment if any.

    Args:
        name: Name of the verb.
        verb: Where it lives.
        module: Its module; `shown_defaults()`, if there, says what `--help` shows for None.
        arguments: What follows the verb.
        experiment: Whose fields are options too.

    Returns:
        An object with `options`, `json` and `experiment`.

    Raises:
        ConfigError: If a flag is unknown, or a value is of another type.
    """
    import tyro

    options = getattr(module, verb.options)
    asks_help = bool({"-h", "--help"} & set(arguments))
    shown = getattr(module, "shown_defaults", dict)() if asks_help else {}
    hints = typing.get_type_hints(options, include_extras=True)
    tables = [name for name, hint in hints.items() if typing.get_origin(hint) is dict]
    fields: list[tuple] = []
    for field in dataclasses.fields(options):
        is_positional = field.name in verb.positional
        metavar = f"[{field.name.upper()}]" if is_positional else None
        hint = _without_none(hints[field.name], metavar, shown.get(field.name, "none"))
        hint = tyro.conf.Positional[hint] if is_positional else hint
        fields.append((field.name, hint, _default_of(field)))
    as_json = typing.Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="Print the result as JSON.")
    ]
    fields.append(("json", as_json, dataclasses.field(default=False)))
    bases: tuple[type, ...] = (options,)
    if experiment is not None:
        hints = typing.get_type_hints(type(experiment), include_extras=True)
        bases = (type(experiment), options)
        for field in dataclasses.fields(experiment):
            value = getattr(experiment, field.name)
            # The class that is there, not a protocol or None, says which flags there are.
            kind = type(value) if dataclasses.is_dataclass(value) else hints[field.name]
            fields.append((field.name, kind, dataclasses.field(default=value)))
    # A subclass of both, so that help texts are found; checks run when the parts are made.
    together = dataclasses.make_dataclass(
        "Command", fields, bases=bases, frozen=True, namespace={"__post_init__": _unchecked}
    )
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                together,
                args=_gathered(arguments, tables),
                prog=f"jvdm {name}",
                description=verb.summary,
                config=(tyro.conf.PositionalMetavarFromFieldName,),
                return_unknown_args=True,
            )
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise _mistyped(name, said.getvalue()) from None
    if unknown:
        raise _unknown(name, verb, unknown, [*_flags(options), "json", *_flags(experiment)])
    return types.SimpleNamespace(
        options=options(**_fields_for(options, parsed)),
        json=parsed.json,
        experiment=experiment
        and dataclasses.replace(experiment, **_fields_for(type(experiment), parsed)),
    )


def _without_none(hint: Any, metavar: str | None, default: str) -> Any:
    """Returns a type whose help shows what may be given, and what happens if nothing is."""
    import tyro

    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if type(None) not in typing.get_args(hint):
        return hint
    choices = ",".join(map(str, typing.get_args(kinds[0])))
    metavar = metavar or (f"{{{choices}}}" if choices else kinds[0].__name__.upper())
    shown = tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")
    return typing.Annotated[hint, shown]


def _flags(value: Any, prefix: str = "") -> list[str]:
    """Returns the names of all flags that the fields of a dataclass have, without dashes."""
    found = []
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        inner = getattr(value, field.name, None)
        found += [prefix + field.name.replace("_", "-")]
        found += _flags(inner, f"{found[-1]}.") if not isinstance(inner, type) else []
    return found


def _mistyped(verb: str, said: str) -> ConfigError:
    """Returns the error for a value that tyro refused, without the frame that it draws."""
    said = " ".join(re.sub(r"[\u2500-\u257f]+", " ", said).split())
    said = said.partition(" Argument helptext")[0].partition(" For full helptext")[0]
    found = re.search(r"parsing (\S+): no type matching \{None\}\|(\S+) .* from (.*?\])", said)
    if found:
        return ConfigError(f"{found[1]} is {found[3]}", f"it must be {found[2]}", "")
    return ConfigError(said.partition("rror ")[2] or said, "", f"see jvdm {verb} --help")


def _unknown(name: str, verb: Verb, unknown: list[str], known: list[str]) -> ConfigError:
    """Returns the error for what no option takes: a flag, or words of a prompt without quotes."""
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if flags:
        near = nearest(flags[0].lstrip("-").replace("_", "-"), known, mark="--")
        return ConfigError(f"there is no option {flags[0]}", near, f"see jvdm {name} --help")
    fix = f"quote the {verb.positional[0]}" if verb.positional else "leave it out"
    if all(re.fullmatch(r"[-+.\deE]+", word) for word in unknown):
        fix = "several numbers of one option are written with commas, as 2,2,3"
    return ConfigError(f"{' '.join(unknown)!r} is left over", "nothing takes it", fix)


def _gathered(arguments: list[str], tables: Sequence[str] = ()) -> list[str]:
    """Writes what may be said piece by piece as tyro wants it, and `~` out.

    That is `--sampling.PART VALUE`, and `--TABLE KEY=VALUE` or `--TABLE KEY VALUE` of options that
    are tables, each as often as there are values.
    """
    home = re.compile(r"^(--[^=]+=)?(~[^/]*)")  # no shell does it behind `=`, or in quotes
    arguments = [
        home.sub(lambda found: (found[1] or "") + os.path.expanduser(found[2]), argument)
        for argument in arguments
    ]
    rest, chosen, waiting = [], [], iter(_joined(arguments, tables))
    for argument in waiting:
        if not argument.startswith("--sampling."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--sampling.").partition("=")
        value = value if equals else next(waiting, None)
        if value is None:
            raise ConfigError(f"{argument} has no value", "", f"write {argument} VALUE")
        chosen += [key, value]
    return [*rest, "--sampling", *chosen] if chosen else rest


def _joined(arguments: list[str], tables: Sequence[str]) -> list[str]:
    """Returns the arguments with all values of a table behind one flag, key after value."""
    flags = {f"--{name}".replace("_", "-") for name in tables} - {"--sampling"}
    rest: list[str] = []
    found: dict[str, list[str]] = {}
    words = collections.deque(arguments)
    while words:
        word = words.popleft()
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag not in flags:
            rest.append(word)
            continue
        pairs = found.setdefault(flag, [])
        if equals:
            words.appendleft(value)
        while words and not words[0].startswith("--"):
            word = words.popleft()
            key, equals, text = word.partition("=")
            is_key = len(pairs) % 2 == 0 and equals and re.fullmatch(r"[\w.]+", key)
            pairs += [key, text] if is_key else [word]
    return [*rest, *(word for flag, pairs in found.items() for word in (flag, *pairs))]


def _default_of(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field()


def _fields_for(kind: type, parsed: Any) -> dict[str, Any]:
    return {field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind)}


def _unchecked(_: Any) -> None:
    pass
