"""Level grids of published schedulers, from the JSON that comes with their weights.

Diffusers writes how a model is sampled as `scheduler_config.json`. Here its grid is computed with
all that is odd in it: the shift of the flow schedulers is applied twice at the clean end, and the
multistep schedulers tell the network whole numbers (`whole_thousandths`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float
from jvdm.errors import ConfigError
from jvdm.samplers.levels import (
    beta_levels,
    exp_shift_levels,
    explicit_levels,
    exponential_levels,
    karras_levels,
    resolution_mu,
    shift_levels,
    stretch_to_terminal,
)
from jvdm.samplers.schedules import spaced_steps, step_levels

Config = Mapping[str, Any]
_Grid = Callable[[Config, int, float | None], Array]

_REFUSED = {
    "invert_sigmas": "its time runs the other way",
    "use_lu_lambdas": "its levels depend on a table of noise",
    "rescale_sigmas": "its levels are scaled afterwards",
}
NOISIEST = 1.0 - 1e-6
"""Level at which multistep schedulers on a flow begin."""
_CURVES = {
    "use_karras_sigmas": karras_levels,
    "use_exponential_sigmas": exponential_levels,
    "use_beta_sigmas": beta_levels,
}


def diffusers_levels(
    config: Config | str | Path, num_steps: int, mu: float | None = None, evenly: bool = False
) -> Float[Array, " levels"]:
    """Returns the grid that a scheduler of Diffusers has after `set_timesteps(num_steps)`.

    The process is `rectified_flow` for flow schedulers, the table of the config for the others
    (`vp_linear`, `vp_scaled_linear`, `vp_cosine_table`, `zero_terminal_snr`), or `edm`. UniPC on
    a flow begins at `1 - 1e-6`, for fear of a logarithm of 0: its second step depends on it.

    Args:
        config: What `scheduler_config.json` says, its text or its path.
        num_steps: Number of denoising steps.
        mu: Shift of a scheduler with `use_dynamic_shifting`; `tokens_mu` has that of a size.
        evenly: Whether the pipeline hands the scheduler even levels, from 1 to 1 over the number
            of steps, instead of letting it choose.

    Raises:
        ConfigError: If the scheduler is another one, has an option whose levels are not known
            here, ends at a level above 0, or takes no levels.
    """
    config = read_scheduler(config)
    name = config.get("_class_name")
    if name not in _GRIDS:
        raise ConfigError(
            f"a scheduler of the class {name}",
            "its levels are not known",
            "use one of " + ", ".join(_GRIDS) + ", or write the levels down (explicit_levels)",
        )
    for option, why in _REFUSED.items():
        if config.get(option):
            raise ConfigError(f"{name} with {option}", why, "write the levels down")
    last = config.get("final_sigmas_type", "zero")
    if last != "zero" or not config.get("set_alpha_to_one", True):
        option = "set_alpha_to_one = false" if last == "zero" else f"final_sigmas_type = {last}"
        raise ConfigError(
            f"{name} with {option}",
            "it ends at the level of its first step, and a grid ends clean",
            "take the option out: it leaves less than a thousandth of noise in the result",
        )
    if not evenly:
        return _GRIDS[name](config, num_steps, mu)
    if _GRIDS[name] is not _flow:
        raise ConfigError(f"even levels for {name}", "it makes its own", "leave evenly out")
    return _flow(config, num_steps, mu, last=1.0 / num_steps)


def tokens_mu(config: Config | str | Path, tokens: int | None) -> float | None:
    """Returns the `mu` of a scheduler whose shift depends on the size of the video, else None.

    Args:
        config: What `scheduler_config.json` says, its text or its path.
        tokens: Tokens of the video; None where it is not known yet.
    """
    config = read_scheduler(config)
    if tokens is None or not config.get("use_dynamic_shifting"):
        return None
    ends = [
        (config.get(f"{end}_image_seq_len", usual[0]), config.get(f"{end}_shift", usual[1]))
        for end, usual in (("base", (256, 0.5)), ("max", (4096, 1.15)))
    ]
    return resolution_mu(tokens, *ends)


def read_scheduler(config: Config | str | Path) -> dict[str, Any]:
    """Returns what a scheduler's JSON says, given as such, as its text or as its path.

    Raises:
        ConfigError: If there is no such file, or it is no JSON object.
    """
    if isinstance(config, Mapping):
        return dict(config)
    text = str(config)
    try:
        found = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text())
        return dict(found)
    except (OSError, ValueError, TypeError) as error:
        fix = "give scheduler_config.json of the weights"
        raise ConfigError(
            f"the scheduler {text:.80}", f"it cannot be read ({error})", fix
        ) from error


def whole_thousandths(t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `1000 t` without its fraction: what multistep flow schedulers tell the network.

    Of pure noise they say 999, because they begin at `1 - 1e-6` or below.
    """
    # Levels are float32 numbers: 0.993 is a little less, and means 993.
    return jnp.minimum(jnp.floor(1000.0 * t + 1e-3), 999.0)


def thousandths(t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `1000 t`: what the other flow schedulers tell the network."""
    return 1000.0 * t


def _flow(config: Config, num_steps: int, mu: float | None, last: float | None = None) -> Array:
    """Levels from the noisiest to the cleanest of training, which is shifted before and after."""
    shift = config.get("shift", 1.0)
    smallest = 1.0 / config.get("num_train_timesteps", 1000) if last is None else last
    if last is None and not config.get("use_dynamic_shifting"):
        smallest = float(shift_levels(jnp.float32(smallest), shift))
    levels = _shifted(np.linspace(1.0, smallest, num_steps), config, shift, mu)
    return _curved(config, levels)


def _multistep(config: Config, num_steps: int, mu: float | None) -> Array:
    """Levels of one step more than is made, without the last; or steps of a table."""
    for option in _CURVES:
        if config.get(option):
            what, why = f"{config['_class_name']} with {option}", "its levels need a table of noise"
            raise ConfigError(what, why, "write the levels down (explicit_levels)")
    if not config.get("use_flow_sigmas"):
        return _table(config, num_steps, mu, extra=1)
    even = np.linspace(1.0, 1.0 / config.get("num_train_timesteps", 1000), num_steps + 1)
    # DPM-Solver spaces the shares of data evenly, so that its first level is not pure noise.
    levels = (1.0 - even)[:0:-1] if config["_class_name"].startswith("DPM") else even[:-1]
    grid = _shifted(levels, config, config.get("flow_shift", 1.0), mu)
    return jnp.minimum(grid, NOISIEST)


def _shifted(levels: np.ndarray, config: Config, shift: float, mu: float | None) -> Array:
    """Returns levels above 0, shifted as the config says."""
    grid = explicit_levels(levels.tolist())
    if not config.get("use_dynamic_shifting"):
        grid = shift_levels(grid, shift)
    elif mu is None:
        raise ConfigError(
            f"{config['_class_name']} shifts its levels by the size of the video",
            "no mu is given",
            "give mu, such as tokens_mu(scheduler, tokens)",
        )
    elif config.get("time_shift_type", "exponential") == "exponential":
        grid = exp_shift_levels(grid, mu)
    else:
        grid = shift_levels(grid, mu)
    if terminal := config.get("shift_terminal"):
        grid = stretch_to_terminal(grid, terminal)
    return grid


def _curved(config: Config, levels: Array) -> Array:
    """Returns the levels, or a curve between the first of them and the last above 0."""
    for option, curve in _CURVES.items():
        if config.get(option):
            return curve(len(levels) - 1, float(levels[-2]), float(levels[0]))
    return levels


def _table(config: Config, num_steps: int, mu: float | None, extra: int = 0) -> Array:
    """Steps of a table; with `extra` the last of one more is left out, but for `trailing`."""
    table, usual = config.get("num_train_timesteps", 1000), "linspace" if extra else "leading"
    spacing = config.get("timestep_spacing", usual)
    extra = 0 if spacing == "trailing" else extra
    steps = spaced_steps(num_steps + extra, spacing, table)[:num_steps]
    offset = config.get("steps_offset", 0) if spacing == "leading" else 0
    return step_levels([step + offset for step in steps], table)


def _consistency(config: Config, num_steps: int, mu: float | None) -> Array:
    """Steps of the schedule that an LCM was distilled on, evenly by their number."""
    table = config.get("num_train_timesteps", 1000)
    count = config.get("original_inference_steps", 50)
    if not 1 <= num_steps <= count <= table:
        raise ConfigError(
            f"{num_steps} steps of a schedule of {count}",
            "an LCM visits steps that it was distilled on",
            f"use 1 to {count} steps",
        )
    known = np.arange(count, 0, -1) * (table // count) - 1
    chosen = np.floor(np.linspace(0, count, num_steps, endpoint=False)).astype(int)
    return step_levels([int(step) for step in known[chosen]], table)


def _edm(config: Config, num_steps: int, mu: float | None) -> Array:
    """Karras' curve, or one of equal ratios."""
    low, high = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
    if config.get("sigma_schedule", "karras") == "exponential":
        return exponential_levels(num_steps, low, high)
    return karras_levels(num_steps, low, high, config.get("rho", 7.0))


_GRIDS: dict[str, _Grid] = {
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "DPMSolverMultistepScheduler": _multistep,
    "UniPCMultistepScheduler": _multistep,
    "DDIMScheduler": _table,
    "DDPMScheduler": _table,
    "CogVideoXDDIMScheduler": _table,
    "CogVideoXDPMScheduler": _table,
    "LCMScheduler": _consistency,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm,
}
