"""The command `jvdm`: finds the verb, reads its options, runs it, and reports.

Each verb is a module with a frozen dataclass of options, `run(options)` that returns
JSON data, and `text(result)` that says the same to people. Verbs are imported when
they are called, so that `jvdm --help` needs neither JAX nor a device.
"""

import dataclasses
import importlib
import json
import os
import sys
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jvdm
from jvdm.cache import keep_compiled_programs
from jvdm.errors import ConfigError, JvdmError
from jvdm.recipes import load_experiment, nearest, shipped

if TYPE_CHECKING:
    from jvdm.experiment import Experiment

INTERRUPTED = 130  # what shells use for Ctrl-C: 128 + SIGINT
USAGE_ERROR = 2


@dataclasses.dataclass(frozen=True)
class Verb:
    """Where a verb lives and how it is called.

    Attributes:
        module: Module with `run` and `text`.
        options: Name of its dataclass of options.
        positional: Fields that are given without a flag.
        summary: One line for `jvdm --help`.
        compiles: Whether compiled programs are worth keeping.
    """

    module: str
    options: str
    positional: tuple[str, ...]
    summary: str
    compiles: bool = True


VERBS = {
    "generate": Verb(
        "jvdm.generate",
        "GenerateOptions",
        ("prompt",),
        "make a video from a prompt, and from images or a video",
    ),
    "decode": Verb("jvdm.decode", "DecodeOptions", ("latents",), "make the video of saved latents"),
    "train": Verb(
        "jvdm.train",
        "TrainOptions",
        ("config",),
        "train what a config file describes: jvdm train CONFIG [options]",
    ),
    "evaluate": Verb("jvdm.evaluate", "EvaluateOptions", (), "measure a model on held-out prompts"),
    "inspect": Verb(
        "jvdm.inspection",
        "InspectOptions",
        ("path",),
        "say what is in a weights folder, a checkpoint or a work directory",
        compiles=False,
    ),
    "doctor": Verb(
        "jvdm.diagnosis",
        "DoctorOptions",
        (),
        "check versions, devices, video encoding, weights and memory",
        compiles=False,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows `jvdm`; the process's own arguments when None.

    Returns:
        The exit code: 0 done, 1 the result says no, 2 wrong usage or input, 75 stopped
        after saving, 130 interrupted. Errors that nobody foresaw keep their traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    wants_json = "--json" in arguments
    try:
        return _dispatch(arguments)
    except JvdmError as error:
        print(f"jvdm: {error}", file=sys.stderr)
        if wants_json:
            print(json.dumps({"ok": False, "error": _as_data(error)}))
        return error.exit_code
    except KeyboardInterrupt:
        print("jvdm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:  # tyro's help and usage errors
        return error.code if isinstance(error.code, int) else USAGE_ERROR


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else USAGE_ERROR
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(jvdm.__version__)
        return 0
    if name not in VERBS:
        raise ConfigError(f"there is no command {name!r}", nearest(name, VERBS), "see jvdm --help")
    verb = VERBS[name]
    module = importlib.import_module(verb.module)
    experiment = _experiment_of(rest) if name == "train" else None
    command = _parse(name, getattr(module, verb.options), rest, experiment)
    if verb.compiles:
        keep_compiled_programs()
    if name == "train":
        result = module.run(command.options, command.experiment)
    else:
        result = module.run(command.options)
    print(json.dumps(result, indent=2, default=str) if command.json else module.text(result))
    return 0 if result.get("ok", True) else 1


def _parse(name: str, options: type, arguments: list[str], experiment: "Experiment | None") -> Any:
    """Reads the flags: those of `options`, `--json`, and the fields of `experiment` if any.

    Returns:
        An object with `options`, `json` and `experiment`.
    """
    import tyro

    hints = typing.get_type_hints(options, include_extras=True)
    fields: list[tuple] = [
        (field.name, tyro.conf.Positional[hints[field.name]], _default_of(field))
        for field in dataclasses.fields(options)
        if field.name in VERBS[name].positional
    ]
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
    parsed = tyro.cli(
        together,
        args=_gathered(arguments),
        prog=f"jvdm {name}",
        description=VERBS[name].summary,
        config=(tyro.conf.PositionalMetavarFromFieldName,),
    )
    return types.SimpleNamespace(
        options=options(**_fields_for(options, parsed)),
        json=parsed.json,
        experiment=experiment
        and dataclasses.replace(experiment, **_fields_for(type(experiment), parsed)),
    )


def _gathered(arguments: list[str]) -> list[str]:
    """Writes `--sampling.PART VALUE`, wherever it stands, as tyro's dictionary."""
    rest, chosen, waiting = [], [], iter(arguments)
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


def _experiment_of(arguments: list[str]) -> "Experiment | None":
    """Loads the config that the arguments of `jvdm train` name; None when they ask for help."""
    first = [argument for argument in arguments[:1] if not argument.startswith("-")]
    known = shipped()
    later = [item for item in arguments if item.endswith(".py") or item in known]
    if first or later:
        return load_experiment((first or later)[0])
    if {"-h", "--help"} & set(arguments):
        return None
    raise ConfigError(
        "jvdm train needs a config", f"shipped are {', '.join(known)}", "try jvdm train nano"
    )


def _as_data(error: JvdmError) -> dict[str, str]:
    kind = type(error).__name__
    return {"kind": kind, "what": error.what, "why": error.why, "fix": error.fix}


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: jvdm COMMAND [options]",
            "",
            *lines,
            "",
            "jvdm COMMAND --help lists the options; every command knows --json.",
            "jvdm train CONFIG --help also lists the fields of that experiment.",
        ]
    )
