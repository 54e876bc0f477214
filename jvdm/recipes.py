"""Python files that describe something: `config() -> Experiment`, `system(base) -> System`.

Shipped ones lie in `jvdm.configs` and are found by name: `nano`, `systems/wave`; one's own
are found by path.
"""

import difflib
import importlib
import importlib.util
import os
import pkgutil
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jvdm.errors import ConfigError, JvdmError

CONFIGS, SYSTEMS = "jvdm.configs", "jvdm.configs.systems"
FAMILIES = "jvdm.configs.families"


def shipped(package: str = CONFIGS) -> list[str]:
    """Returns the names of the recipes in a package."""
    found = importlib.import_module(package)
    items = pkgutil.walk_packages(found.__path__, f"{package}.")
    return [item.name.removeprefix(f"{package}.") for item in items if not item.ispkg]


def load_experiment(config: str) -> Any:
    """Returns the `Experiment` that a config file describes.

    Args:
        config: Path of a Python file with `config() -> Experiment`, or the name of a
            shipped one: `nano`, `configs/nano.py` and `systems.name` are found anywhere.

    Raises:
        ConfigError: If there is no such file, or it has no `config`.
    """
    return _function(config, CONFIGS, "config", "configs/nano.py")()


def load_system(name: str, base: Any) -> Any:
    """Returns the `System` that a system file makes of `base`.

    Args:
        name: Path of a Python file with `system(base) -> System`, or the name of one in
            `configs/systems`, such as `wave`.
        base: The system of the weights.

    Raises:
        ConfigError: If there is no such file, it fails, or returns something else.
    """
    function = _function(name, SYSTEMS, "system", "configs/systems/wave.py")
    return apply_system(function, base, name)


def apply_system(function: Callable[[Any], Any], base: Any, name: str) -> Any:
    """Returns `function(base)`, which must be a system.

    Raises:
        ConfigError: If it fails or returns something else.
    """
    try:
        made = function(base)
    except JvdmError:
        raise
    except Exception as error:  # whatever a user's file does wrong
        what = f"the system {name} failed"
        raise ConfigError(what, f"{type(error).__name__}: {error}", "mend its system()") from error
    if type(made) is not type(base):
        what = f"the system {name} returned a {type(made).__name__}"
        raise ConfigError(what, "system(base) returns a System", "use dataclasses.replace(base, …)")
    return made


def require_trained(name: str, trained: bool, lacks: str, why: str) -> None:
    """Refuses weights that were not trained for a system, and names the recipe that trains them.

    Args:
        name: Of the system, and of its recipe.
        trained: Whether the weights are made for it.
        lacks: What they lack, as in "have no routers".
        why: What it is for.

    Raises:
        ConfigError: If they are not.
    """
    if not trained:
        what, work = f"the system {name} with weights that {lacks}", f"work/{name}"
        train = f"train some: jvdm train configs/{name}.py --workdir {work}"
        raise ConfigError(what, why, f"{train}; then --weights {work}/weights")


def load_family(pipeline: str) -> types.ModuleType:
    """Returns the module that reads the folders of a pipeline class of Diffusers.

    It is the one in `configs/families` whose `PIPELINES` name the class.

    Raises:
        ConfigError: If there is none.
    """
    families = {name: module for module in family_modules() for name in module.PIPELINES}
    if pipeline not in families:
        what = f"the folder is that of a {pipeline[:80]}"
        why = f"jvdm does not read it; it reads {', '.join(sorted(families))}"
        raise ConfigError(what, why, nearest(pipeline, families))
    return families[pipeline]


def family_modules() -> list[types.ModuleType]:
    """Returns the modules in `configs/families`."""
    return [importlib.import_module(f"{FAMILIES}.{name}") for name in shipped(FAMILIES)]


def load_file(path: Path) -> types.ModuleType:
    """Imports a Python file; a shipped one is the module that it is when imported.

    Raises:
        ConfigError: If it is no Python file.
    """
    for folder in map(Path, importlib.import_module(CONFIGS).__path__):
        if path.resolve().is_relative_to(folder.resolve()):
            inside = path.resolve().relative_to(folder.resolve()).with_suffix("")
            return importlib.import_module(".".join([CONFIGS, *inside.parts]))
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ConfigError(f"{path} is no Python file", fix="name it *.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def nearest(name: str, known: Iterable[str], mark: str = "") -> str:
    """Returns what was probably meant, or all that is known.

    Args:
        name: What was given.
        known: What there is.
        mark: Put before every name, such as the dashes of a flag.
    """
    known = list(known)
    meant = SPELLINGS.get(name.lower().replace("-", "_"), "")
    near = [other for other in known if other.replace("-", "_") == meant]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(mark + other for other in near)}?"
    return f"known are {', '.join(mark + other for other in sorted(known))}"


SPELLINGS = {
    "num_videos_per_prompt": "num_videos",
    "num_images_per_prompt": "num_videos",
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "sample_steps": "num_inference_steps",
    "sampling_steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "true_cfg_scale": "guidance_scale",
    "frames": "num_frames",
    "video_length": "num_frames",
    "frame_num": "num_frames",
    "frame_rate": "fps",
    "flow_shift": "shift",
    "sample_shift": "shift",
    "generator": "seed",
    "end_image": "last_image",
    "model": "weights",
    "model_id": "weights",
    "pretrained_model_name_or_path": "weights",
    "scheduler": "sampling",
    "callback_on_step_end": "callback",
    "torch_dtype": "dtype",
}
"""What others call a setting, and its name here."""


def _function(name: str, package: str, function: str, example: str) -> Callable[..., Any]:
    """Returns a function of a recipe."""
    path = Path(name).expanduser()
    module = load_file(path) if os.path.isfile(path) else _load_shipped(name, package)
    if not callable(getattr(module, function, None)):
        raise ConfigError(
            f"{name} has no function {function}()",
            f"a {function} file describes what it is for by that function",
            f"see {example} for an example",
        )
    return getattr(module, function)


def _load_shipped(name: str, package: str) -> types.ModuleType:
    kind = package.rpartition(".")[2].removesuffix("s")
    short = name.removesuffix(".py").removeprefix("configs/").replace("/", ".")
    short = short.removeprefix("systems.") if package == SYSTEMS else short
    if short not in shipped(package):
        raise ConfigError(
            f"there is no {kind} {name!r}",
            f"it is neither a file nor one of the shipped {kind}s",
            nearest(short, shipped(package)),
        )
    return importlib.import_module(f"{package}.{short}")
