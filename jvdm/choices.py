"""A system changed by names: `--sampling.solver heun`, `--sampling.matrix.lag 4`.

`PART NAME` chooses a rule, `PART.FIELD VALUE` changes one of its numbers, or a rule in it by its
name (`matrix windowed`, `matrix.rule lag`); of hooks, which are several, `hooks.0.FIELD`. A name is
one of `PARTS`, or `FILE.py:Class` or `module:Class` for one's own. A rule that is chosen takes over
what the one before it had: another guidance keeps the scale, another grid the number of steps.
"""

import ast
import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvdm.attention import POLICIES
from jvdm.errors import ConfigError
from jvdm.models.regions import Regions
from jvdm.models.step_cache import CACHES
from jvdm.recipes import load_file, nearest
from jvdm.samplers import (
    AutoregressiveMatrix,
    BetaLevels,
    CachedMatrix,
    ClassifierFree,
    Cosine,
    DiffusersLevels,
    ExplicitLevels,
    ExponentialLevels,
    ExpShiftedLevels,
    History,
    Interval,
    KarrasLevels,
    KeptDifference,
    LagMatrix,
    LinearQuadraticLevels,
    MomentMatch,
    MotionLevels,
    OffsetNoise,
    PlusPlus,
    PoolPermute,
    ProgressiveNoise,
    Projected,
    Ramped,
    Rescaled,
    SharedNoise,
    ShiftedLevels,
    Stabilised,
    StepLevels,
    SynchronousMatrix,
    Tiles,
    TrapezoidMatrix,
    TruncatedMatrix,
    TwoScales,
    Unguided,
    WindowedMatrix,
    WindowShuffle,
    ZeroStar,
    biased,
    edm,
    rectified_flow,
    trig_flow,
    vp_continuous,
    vp_cosine,
    vp_cosine_table,
    vp_linear,
    vp_scaled_linear,
    zero_terminal_snr,
)
from jvdm.samplers.solvers import SOLVERS
from jvdm.system import System
from jvdm.values import from_data, parts_of, remade

SCHEDULER = '{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}'

PARTS: Mapping[str, Mapping[str, Any]] = {
    "levels": {
        "shifted": ShiftedLevels(16, 3.0),
        "exp_shifted": ExpShiftedLevels(16, 1.15),
        "karras": KarrasLevels(16, 0.02, 1.0),
        "exponential": ExponentialLevels(16, 0.02, 1.0),
        "beta": BetaLevels(16, 0.02, 1.0),
        "linear_quadratic": LinearQuadraticLevels(16),
        "steps": StepLevels(16),
        "diffusers": DiffusersLevels(16, SCHEDULER),
        "explicit": ExplicitLevels((1.0, 0.9, 0.75, 0.5)),
        "motion": MotionLevels(),
    },
    "matrix": {
        "synchronous": SynchronousMatrix(),
        "lag": LagMatrix(lag=4),
        "autoregressive": AutoregressiveMatrix(),
        "trapezoid": TrapezoidMatrix(),
        "truncated": TruncatedMatrix(SynchronousMatrix(), 0.6),
        "windowed": WindowedMatrix(SynchronousMatrix()),
        "cached": CachedMatrix(AutoregressiveMatrix()),
    },
    "solver": SOLVERS,
    "guidance": {
        "none": Unguided(),
        "cfg": ClassifierFree(4.0),
        "interval": Interval(4.0, 0.3, 0.9),
        "plus_plus": PlusPlus(0.6),
        "rescaled": Rescaled(4.0, 0.7),
        "zero_star": ZeroStar(4.0),
        "apg": Projected(4.0, momentum=-0.5),
        "ramped": Ramped(1.0, 4.0, 8),
        "cosine": Cosine(4.0),
        "two_scales": TwoScales(4.0, 3.0, 0.875),
        "history": History(4.0, 1.5),
        "cfg_cache": KeptDifference(4.0),
    },
    "policy": POLICIES,
    "cache": {**CACHES, "regions": Regions()},
    "noise": {
        "shared": SharedNoise(0.2),
        "progressive": ProgressiveNoise(1.0),
        "offset": OffsetNoise(0.1),
        "window_shuffle": WindowShuffle(4, 2),
        "pool_permute": PoolPermute(4, 4),
    },
    "context": {"none": None, "stabilised": Stabilised()},
    "tiles": {"none": None, "frames": Tiles(8, 4), "blocks": Tiles(12, 8, weights="middle")},
    "hooks": {"none": (), "moment_match": (MomentMatch(),)},
    "process": {
        "rectified_flow": rectified_flow(),
        "vp_cosine": vp_cosine(),
        "trig_flow": trig_flow(),
        "edm": edm(),
        "vp_linear": vp_linear(),
        "vp_scaled_linear": vp_scaled_linear(),
        "vp_cosine_table": vp_cosine_table(),
        "vp_continuous": vp_continuous(),
        "zero_terminal_snr": zero_terminal_snr(vp_scaled_linear()),
        "biased": biased(rectified_flow(), 0.0, 1.0),
    },
}
"""What can be chosen by name, part by part."""


def choose(system: System, choices: Mapping[str, Any]) -> System:
    """Returns the system with what was chosen.

    Args:
        system: The system.
        choices: By part or field, such as `{"solver": "heun", "matrix.lag": "4"}`, in order.

    Raises:
        ConfigError: If there is no such part, name or field, or a value does not fit.
    """
    for key, value in choices.items():
        part, *path = key.split(".")
        if part not in PARTS:
            what = f"--sampling.{part} was given"
            raise ConfigError(what, "there is no such part of a sampling", nearest(part, PARTS))
        old = system.process if part == "process" else getattr(system.sampling, part)
        new = _changed(old, path, value, key) if path else _named(part, value)
        if not path and part in ("levels", "guidance"):
            new = _taken_over(new, old)
        if part == "hooks" and not isinstance(new, tuple):
            new = (new,)
        if part == "process":
            system = dataclasses.replace(system, process=new)
        else:
            sampling = dataclasses.replace(system.sampling, **{part: new})
            system = dataclasses.replace(system, sampling=sampling)
    return system


def _named(part: str, name: Any) -> Any:
    """Returns the rule that a name stands for."""
    if name in PARTS[part]:
        return PARTS[part][name]
    place, colon, attribute = name.rpartition(":")
    if not colon:
        fix = f"{nearest(name, PARTS[part])} (all: {', '.join(PARTS[part])}; or FILE.py:Class)"
        raise ConfigError(f"a {part} called {name!r} was asked for", "there is none", fix)
    try:
        module = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        made = getattr(module, attribute)
        return made() if isinstance(made, type) else made
    except (ImportError, AttributeError, TypeError, OSError) as error:
        fix = "name a file or module and a class in it that needs no arguments"
        raise ConfigError(f"{part} {name} cannot be made", str(error), fix) from error


def _taken_over(new: Any, old: Any) -> Any:
    """Gives a chosen rule the numbers of the one before that it has, and can have, too."""
    mine, theirs = ({field.name for field in dataclasses.fields(rule)} for rule in (new, old))
    try:
        return dataclasses.replace(new, **{name: getattr(old, name) for name in mine & theirs})
    except ConfigError:
        return new


def _changed(old: Any, path: list[str], value: Any, key: str) -> Any:
    """Returns a rule with one of its parts changed."""
    name, *deeper = path
    parts = parts_of(old)
    if name not in parts:
        what = f"--sampling.{key} was given"
        why = f"{type(old).__name__} has no {name}"
        raise ConfigError(what, why, f"it has {', '.join(parts) or 'no fields'}")
    now = parts[name]
    if not deeper and dataclasses.is_dataclass(now):
        return remade(old, name, _named(key.split(".")[0], value))
    new = _changed(now, deeper, value, key) if deeper else _value(value, now, key)
    return remade(old, name, new)


def _value(text: Any, now: Any, key: str) -> Any:
    """Reads a value of the kind that is there now; a tuple may be in a JSON file."""
    if isinstance(now, tuple) and str(text).endswith(".json"):
        try:
            text = json.loads(Path(text).read_text())
        except (OSError, ValueError) as error:
            fix = "name a JSON file of lists of numbers"
            raise ConfigError(f"--sampling.{key} is {text}", str(error), fix) from error
    try:
        value = ast.literal_eval(str(text))
    except (ValueError, SyntaxError):
        value = text
    value = float(value) if isinstance(now, float) and type(value) is int else value
    value = from_data(value) if isinstance(now, tuple) and type(value) is list else value
    if now is not None and type(value) is not type(now):
        kind = type(now).__name__
        raise ConfigError(f"--sampling.{key} is {text!r}", f"it must be a {kind} like {now!r}")
    return value
