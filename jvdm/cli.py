"""The command `jvdm`: finds the verb, reads its options, runs it, and reports.

Each verb is a module with a frozen dataclass of options, `run(options)` that returns
JSON data, and `text(result)` that says the same to people. Verbs are imported when
they are called, so that `jvdm --help` needs neither JAX nor a device.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import json
import os
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jvdm
from jvdm.cache import keep_compiled_programs
from jvdm.errors import ConfigError, JvdmError

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
        raise ConfigError(f"there is no command {name!r}", _nearest(name, VERBS), "see jvdm --help")
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
        args=arguments,
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


def load_experiment(config: str) -> "Experiment":
    """Returns what a config file describes.

    Args:
        config: Path of a Python file with `config() -> Experiment`, or the name of a
            shipped one: `nano`, `configs/nano.py` and `systems.name` are found anywhere.

    Raises:
        ConfigError: If there is no such file, or it has no `config`.
    """
    path = Path(config)
    module = _load_file(path) if path.is_file() else _load_shipped(config)
    if not callable(getattr(module, "config", None)):
        raise ConfigError(
            f"{config} has no function config()",
            "a config file describes a run by returning an Experiment from it",
            "see configs/nano.py for an example",
        )
    return module.config()


def shipped_configs() -> list[str]:
    """Returns the names of the recipes in `jvdm.configs`."""
    import jvdm.configs

    found = pkgutil.walk_packages(jvdm.configs.__path__, "jvdm.configs.")
    return [item.name.removeprefix("jvdm.configs.") for item in found if not item.ispkg]


def _load_file(path: Path) -> types.ModuleType:
    import jvdm.configs

    for folder in map(Path, jvdm.configs.__path__):
        if path.resolve().is_relative_to(folder.resolve()):  # the same module as when imported
            inside = path.resolve().relative_to(folder.resolve()).with_suffix("")
            return importlib.import_module(".".join(["jvdm.configs", *inside.parts]))
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ConfigError(f"{path} is no Python file", fix="name it *.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _load_shipped(config: str) -> types.ModuleType:
    name = config.removesuffix(".py").removeprefix("configs/").replace("/", ".")
    shipped = shipped_configs()
    if name not in shipped:
        raise ConfigError(
            f"there is no config {config!r}",
            "it is neither a file nor one of the shipped configs",
            _nearest(name, shipped),
        )
    return importlib.import_module(f"jvdm.configs.{name}")


def _experiment_of(arguments: list[str]) -> "Experiment | None":
    """Loads the config that the arguments of `jvdm train` name; None when they ask for help."""
    first = [argument for argument in arguments[:1] if not argument.startswith("-")]
    shipped = shipped_configs()
    later = [item for item in arguments if item.endswith(".py") or item in shipped]
    if first or later:
        return load_experiment((first or later)[0])
    if {"-h", "--help"} & set(arguments):
        return None
    raise ConfigError(
        "jvdm train needs a config", f"shipped are {', '.join(shipped)}", "try jvdm train nano"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(sorted(known))}"


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
