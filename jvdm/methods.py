"""The verb `methods`: the published systems, what each needs and what it goes together with.

What a paper says is read from the docstrings of `configs/systems`, which have one form (`read`).
What a system changes, needs and goes together with is found by composing it on the shipped model
and preparing runs, which computes nothing.
"""

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.attention import CachedCausal, FrameCausal, LevelBank
from jvdm.errors import ConfigError, DeviceMemoryError, JvdmError
from jvdm.pipeline import Pipeline, Request, loading, streaming
from jvdm.recipes import SYSTEMS, load_experiment, nearest, shipped
from jvdm.system import Sampling, System

LABELS = ("Paper", "Claim", "Ours", "Gain")
PROMPT = "a large red ball rolls to the left"
CAUSAL = (FrameCausal, CachedCausal, LevelBank)
LENGTHS = 8  # latent frames more than those of training, of which one length must do


@dataclasses.dataclass(frozen=True)
class MethodsOptions:
    """Which systems are described, and how."""

    name: str | None = None
    """One system, told at length."""
    weights: str = "tiny_t2v"
    """The model on which they are composed: a weights folder or the name of shipped ones."""
    table: bool = False
    """Whether the table is that of the README, in Markdown."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What the docstring of a system says.

    Attributes:
        title: What it is called.
        summary: What it does, in a sentence.
        commands: Lines that run it.
        paper: Title and arXiv id of its source.
        claim: What the paper claims.
        ours: What is ours, and what is otherwise.
        gain: What was measured here.
    """

    title: str
    summary: str
    commands: tuple[str, ...]
    paper: str
    claim: str
    ours: str
    gain: str

    @property
    def arxiv(self) -> str:
        """The arXiv id of the paper."""
        return re.findall(r"arXiv:(\d{4}\.\d{5})", self.paper)[0]


def read(name: str, text: str) -> Told:
    """Reads the docstring of a system.

    It begins with `Title: what it does.`, then has lines that begin with `jvdm`, then paragraphs
    or lines that begin with `Paper:` (which ends with an arXiv id), `Claim:`, `Ours:` and `Gain:`,
    in this order. What follows after an empty line is free.

    Args:
        name: Of the system, for errors.
        text: The docstring.

    Raises:
        ConfigError: If a part is missing; it names the part.
    """
    head, _, rest = text.strip().partition("\n\n")
    title, _, summary = " ".join(head.split()).partition(": ")
    commands, _, rest = rest.partition("\n\n")
    parts = {"title": title, "summary": summary}
    parts |= {label.lower(): _labelled(rest, label) for label in LABELS}
    lines = tuple(line for line in commands.splitlines() if line.startswith("jvdm "))
    parts["commands"] = "\n".join(lines)
    missing = [part for part, said in parts.items() if not said]
    if not re.search(r"arXiv:\d{4}\.\d{5}\.?$", parts["paper"]):
        missing.append("paper with an arXiv id at its end")
    if missing:
        what = f"the docstring of the system {name} has no {', no '.join(missing)}"
        raise ConfigError(what, "", "write it as configs/systems/wave.py has it")
    return Told(**{**parts, "commands": lines})


def run(options: MethodsOptions) -> dict[str, Any]:
    """Describes one system or all.

    Returns:
        `methods`: for each what was read (`Told`). For the table and for one system also what was
        found: `parts` (what it changes, by name), `needs`, `clips` and `streams` (whether it makes
        them). For one system also `combines_with`, which takes seconds.

    Raises:
        ConfigError: If there is no such system; WeightsError: if there are no such weights.
        DeviceMemoryError: If this machine is too small to say whether a clip can be made.
    """
    names = shipped(SYSTEMS)
    if options.name is not None and options.name not in names:
        what = f"there is no system {options.name!r:.80}"
        raise ConfigError(what, "", nearest(options.name[:80], names))
    described = [options.name] if options.name is not None else names
    methods = []
    for name in described:
        told = read(name, _module(name).__doc__ or "")
        methods.append({"name": name, "arxiv": told.arxiv, **dataclasses.asdict(told)})
    if options.name is not None or options.table:
        folder, files = loading.place_of(options.weights)
        trials = Trials(Pipeline(*_base(folder, files)))
        methods = [method | trials.found(method["name"]) for method in methods]
        if options.name is not None:
            methods[0]["combines_with"] = trials.partners(options.name)
    return {"weights": str(options.weights), "methods": methods}


def text(result: Mapping[str, Any]) -> str:
    """Returns a table of all systems, or what is known of one."""
    methods = result["methods"]
    if "combines_with" in methods[0]:
        return "\n".join(_at_length(methods[0]))
    if "parts" in methods[0]:
        return markdown(methods)
    width = max(len(method["name"]) for method in methods)
    lines = [
        f"{method['name']:<{width}}  {method['arxiv']}  {method['summary']}" for method in methods
    ]
    return "\n".join([*lines, "jvdm methods NAME says what it needs, combines with and gains."])


def markdown(methods: list[dict[str, Any]]) -> str:
    """Returns the table of the README."""
    head = "| system | paper | changes | needs | makes | measured |\n|---|---|---|---|---|---|"
    rows = []
    for method in methods:
        cells = (
            f"`{method['name']}`",
            f"[{method['arxiv']}](https://arxiv.org/abs/{method['arxiv']})",
            ", ".join(method["parts"]),
            ", ".join(method["needs"]),
            _makes(method),
            method["gain"].removesuffix("."),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([head, *rows])


class Trials:
    """Runs that are prepared, none of which is made.

    Args:
        pipe: The plain system, without parameters.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe
        self.functions: dict[str, Callable[[System], System]] = {
            name: _module(name).system for name in shipped(SYSTEMS)
        }
        self._asked = functools.cache(self.asked)

    def fitting(self, *names: str) -> "Trials":
        """Returns these trials, or those with the network of a recipe if a system needs its own.

        A system that refuses a plain network says so, and has a recipe of its name.
        """
        for name in names:
            try:
                self.functions[name](self.pipe.system)
            except ConfigError:
                return _own(name)
        return self

    def found(self, name: str) -> dict[str, Any]:
        """Returns what composing a system tells of it."""
        if (own := self.fitting(name)) is not self:
            found = own.found(name)
            return found | {"needs": [f"weights of configs/{name}.py", *found["needs"]]}
        alone = self.functions[name](self.pipe.system)
        asked = self._asked(name)
        policy = alone.sampling.policy
        needs = [] if asked is None else list(asked)
        needs += ["attention trained causally"] * isinstance(policy, CAUSAL)
        needs += ["a cache of keys and values"] * isinstance(policy, CachedCausal | LevelBank)
        return {
            "parts": {part: type(rule).__name__ for part, rule in self.changed(alone).items()},
            "needs": needs,
            "clips": asked is not None,
            "streams": self.streams(alone),
        }

    def partners(self, name: str) -> list[str]:
        """Returns the systems that go together with one."""
        return [other for other in self.functions if other != name and self.combine(name, other)]

    def changed(self, system: System) -> dict[str, Any]:
        """Returns the parts in which a system differs from the plain one."""
        pairs = {"model": (system.model, self.pipe.system.model)}
        for field in dataclasses.fields(Sampling):
            both = (system.sampling, self.pipe.system.sampling)
            pairs[field.name] = tuple(getattr(sampling, field.name) for sampling in both)
        return {part: new for part, (new, old) in pairs.items() if new != old}

    def asked(self, name: str) -> dict[str, dict[str, Any]] | None:
        """Returns what a clip needs besides a prompt, and as settings; None if none can be made."""
        vae, manifest = self.pipe.system.vae, self.pipe.manifest
        frames, defaults = manifest.defaults.num_frames, manifest.defaults
        film = np.zeros((frames, defaults.height, defaults.width, 3), np.uint8)
        first, last = {"image": film[0]}, {"last_image": film[0]}
        trials = [{}, {"a first picture": first}, {"a video": {"video": film}}]
        trials.append({"a first picture": first, "a last picture": last})
        system, latents = self.functions[name](self.pipe.system), vae.latents_of_prefix(frames)
        for more in range(1, LENGTHS) if not self.streams(system) else ():
            length = vae.num_frames(latents + more)
            trials.append({f"another length, such as {length} frames": {"num_frames": length}})
        return next((needed for needed in trials if self.clips(system, needed)), None)

    def clips(self, system: System, needed: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a clip can be made of a prompt and what is needed besides."""
        given = {key: value for settings in needed.values() for key, value in settings.items()}
        request = Request(prompt=PROMPT, seed=0, **given)
        return self._can(lambda pipe: pipe.prepare(request), system)

    def streams(self, system: System) -> bool:
        """Whether a system can go on for ever."""
        request = Request(prompt=PROMPT, seed=0)
        return self._can(lambda pipe: streaming.prepare_stream(pipe, request, {}), system)

    def combine(self, one: str, other: str) -> bool:
        """Whether two systems keep what each of them is, in one order or the other.

        The second keeps what the first changed as it is or as a part of its own rule, changes
        something itself, and a clip or a stream of both can be prepared.
        """
        trials = self.fitting(one, other)
        return trials._on(one, other) or trials._on(other, one)

    def _on(self, second: str, first: str) -> bool:
        try:
            below = self.functions[first](self.pipe.system)
            both, alone = map(self.functions[second], (below, self.pipe.system))
        except ConfigError:  # each needs weights of its own
            return False
        rules = self.changed(both)
        kept = all(
            part in rules and any(inner == rule for inner in _inside(rules[part]))
            for part, rule in self.changed(below).items()
        )
        if not kept or both in (below, alone):
            return False
        needs = [self._asked(name) for name in (first, second)]
        given = None if None in needs else {k: v for need in needs for k, v in (need or {}).items()}
        return (given is not None and self.clips(both, given)) or self.streams(both)

    def _can(self, prepare: Callable[[Pipeline], object], system: System) -> bool:
        try:
            prepare(dataclasses.replace(self.pipe, system=system))
        except DeviceMemoryError:
            raise  # that is said of this machine, not of the system
        except JvdmError:
            return False
        return True


@functools.cache
def _own(name: str) -> Trials:
    """Returns trials with the network that the recipe of a system trains."""
    run = load_experiment(name)
    folder, files = loading.place_of(run.package.parts[0])
    system, params, manifest = _base(folder, files)
    system = dataclasses.replace(system, model=run.objective.system.model)
    return Trials(Pipeline(system, params, manifest))


def _base(folder: Path, files: tuple[Path, ...]) -> tuple[System, dict, Any]:
    """Returns the system of a weights folder, no parameters, and what its manifest says."""
    manifest = loading.manifest_of(folder, (), False, files)
    return loading.composed(manifest, None, {}), {}, manifest


def _module(name: str) -> Any:
    return importlib.import_module(f"{SYSTEMS}.{name}")


def _labelled(text: str, label: str) -> str:
    """Returns what follows a label, up to the next one or an empty line."""
    ends = "|".join(LABELS)
    found = re.search(rf"^{label}: (.*?)(?=\n(?:{ends}): |\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _inside(rule: Any) -> Iterator[Any]:
    """Yields a rule and the rules that it is made of."""
    yield rule
    if dataclasses.is_dataclass(rule):
        for field in dataclasses.fields(rule):
            yield from _inside(getattr(rule, field.name))


def _makes(method: Mapping[str, Any]) -> str:
    return " and ".join(kind for kind in ("clips", "streams") if method[kind])


def _at_length(method: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines about one system."""
    parts = ", ".join(f"{part} ({rule})" for part, rule in method["parts"].items())
    yield f"{method['title']}: {method['summary']}"
    for label in LABELS:
        yield f"{label.lower():<10} {method[label.lower()]}"
    yield f"{'changes':<10} {parts or 'nothing'}"
    yield f"{'needs':<10} {', '.join(method['needs']) or 'nothing'}"
    yield f"{'makes':<10} {_makes(method)}"
    yield f"{'with':<10} {', '.join(method['combines_with']) or 'no other'}"
    for command in method["commands"]:
        yield f"{'command':<10} {command}"
