"""The command `jvdm`: finds the verb, reads its options, runs it, and reports.

Each verb is a module with a frozen dataclass of options, `run(options)` that returns
JSON data, and `text(result)` that says the same to people. Verbs are imported when
they are called, so that `jvdm --help` needs neither JAX nor a device.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jvdm
from jvdm.cache import keep_compiled_programs
from jvdm.errors import ConfigError, JvdmError, shortened
from jvdm.flags import Verb, parse
from jvdm.recipes import load_experiment, nearest, shipped
from jvdm.stopping import StopRequest

if TYPE_CHECKING:
    from jvdm.experiment import Experiment

INTERRUPTED = 130  # what shells use for Ctrl-C: 128 + SIGINT
USAGE_ERROR = 2


VERBS = {
    "generate": Verb(
        "jvdm.generate",
        "GenerateOptions",
        ("prompt",),
        "make a video from a prompt, and from images or a video",
    ),
    "stream": Verb(
        "jvdm.stream",
        "StreamOptions",
        ("prompt",),
        "make a video without an end, steered while it plays by lines of standard input",
    ),
    "decode": Verb("jvdm.decode", "DecodeOptions", ("latents",), "make the video of saved latents"),
    "train": Verb(
        "jvdm.train",
        "TrainOptions",
        ("config",),
        "train what a config file describes: jvdm train CONFIG [options]",
        shared="workdir",
    ),
    "export": Verb(
        "jvdm.training.export",
        "ExportOptions",
        ("workdir",),
        "make a weights folder of a checkpoint of a training run",
    ),
    "evaluate": Verb(
        "jvdm.evaluate",
        "EvaluateOptions",
        (),
        "measure a model on held-out prompts",
        shared="output",
    ),
    "attention": Verb(
        "jvdm.policies", "PoliciesOptions", (), "measure sparse attention beside dense attention"
    ),
    "bench": Verb(
        "jvdm.bench",
        "BenchOptions",
        ("what",),
        "time sparse attention beside dense attention, alone or in a network",
    ),
    "plan": Verb(
        "jvdm.plan",
        "PlanOptions",
        ("config",),
        "say what training or a network needs on devices that are not there: --on v5e:2x4",
        compiles=False,
    ),
    "profile": Verb(
        "jvdm.profiling",
        "ProfileOptions",
        ("config",),
        "say which kinds of operations a network consists of, and where its time goes",
    ),
    "methods": Verb(
        "jvdm.methods",
        "MethodsOptions",
        ("name",),
        "say what the published systems are, need and combine with",
        compiles=False,
    ),
    "convert": Verb(
        "jvdm.convert",
        "ConvertOptions",
        ("source", "target"),
        "write a published folder so that it loads faster, or back as Diffusers reads it",
        compiles=False,
    ),
    "inspect": Verb(
        "jvdm.inspection",
        "InspectOptions",
        ("path",),
        "say what is in a weights folder, a checkpoint or a work directory",
        compiles=False,
    ),
    "serve": Verb(
        "jvdm.serving.serve", "ServeOptions", (), "make videos for others, who ask over HTTP"
    ),
    "demo": Verb(
        "jvdm.serving.demo", "DemoOptions", (), "show a page on which videos stream and compare"
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
        return _refuse(error, wants_json)
    except KeyboardInterrupt:
        print("jvdm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:  # tyro's help and usage errors
        return error.code if isinstance(error.code, int) else USAGE_ERROR
    except Exception as error:
        from jvdm.diagnosis import understood

        if (known := understood(error)) is None:
            raise
        return _refuse(known, wants_json)


def _refuse(error: JvdmError, as_json: bool) -> int:
    """Says what is wrong in one line, without the middle of what is very long."""
    parts = {name: shortened(getattr(error, name)) for name in ("what", "why", "fix")}
    print(f"jvdm: {'; '.join(filter(None, parts.values()))}", file=sys.stderr)
    if as_json:
        print(json.dumps({"ok": False, "error": {"kind": type(error).__name__, **parts}}))
    return error.exit_code


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
    heard = _announce_stop if VERBS[name].shared else lambda: None
    with StopRequest(fix="start the same command again", heard=heard) as stop:
        stop.state = "before it was done"
        return _run(name, VERBS[name], rest)


def _run(name: str, verb: Verb, rest: list[str]) -> int:
    module = importlib.import_module(verb.module)
    place, rest = _place(rest) if verb.shared else ({}, rest)
    experiment = _experiment_of(rest) if name == "train" else None
    command = parse(name, verb, module, rest, experiment)
    given = (command.options,) if experiment is None else (command.options, command.experiment)
    if not verb.shared:
        return _carry_out(verb, module, command, given)
    from jvdm.parallel import processes

    with processes.initialize(**place):
        if processes.process_count() > 1:  # JAX lets process 0 alone write compiled programs
            folder = getattr(command.options, verb.shared).absolute() / "compiled"
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
        return _carry_out(verb, module, command, given, processes.writes())


def _carry_out(verb: Verb, module: Any, command: Any, given: tuple, says: bool = True) -> int:
    if verb.compiles:
        keep_compiled_programs()
    result = module.run(*given)
    if says:
        print(json.dumps(result, indent=2, default=str) if command.json else module.text(result))
    return 0 if result.get("ok", True) else 1


def _announce_stop() -> None:
    """Passes a signal on to the other processes, if there can be any."""
    if "jvdm.parallel.processes" in sys.modules:
        sys.modules["jvdm.parallel.processes"].announce_stop()


def _place(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Takes out what says which process of a run this is, for `processes.initialize`."""
    kinds = {"coordinator_address": str, "num_processes": int, "process_id": int}
    found: dict[str, Any] = {}
    others, waiting = [], iter(arguments)
    for argument in waiting:
        flag, _, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in kinds:
            others.append(argument)
            continue
        value = value or next(waiting, "")
        if not value or (kinds[name] is int and not value.isdecimal()):
            raise ConfigError(
                f"{flag} is {value!r}", "", "give " + ("a number", "HOST:PORT")[kinds[name] is str]
            )
        found[name] = kinds[name](value)
    return found, others


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
            "train and evaluate run in several processes, as Cloud TPU, SLURM, Open MPI or",
            "Kubernetes say, or --coordinator-address HOST:PORT --num-processes N --process-id I.",
            "Exit codes: 0 done, 1 the answer is no, 2 something to fix, 75 stopped by SIGTERM",
            "and 130 by Ctrl-C after saving what there was.",
        ]
    )
