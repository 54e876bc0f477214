"""The end of a run: held-out numbers and a weights folder, checked at the beginning.

`jvdm export WORKDIR` does the same for any checkpoint of a run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jvdm.arrays import PyTree
from jvdm.errors import CheckpointError, ConfigError, JvdmError, WeightsError
from jvdm.parallel import processes
from jvdm.training import inventory
from jvdm.training.checkpoint import read_checkpoint
from jvdm.training.objective import (
    HasCheck,
    HasComponents,
    HasFile,
    HasRules,
    HasSummary,
    MakesLatents,
    Objective,
    Source,
)
from jvdm.values import from_data, to_data
from jvdm.weights.folder import autoencoder, find
from jvdm.weights.package import Packaging, check_package, write_package

WEIGHTS = "weights"
"""Folder of the weights in that of a run."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which checkpoint becomes a weights folder."""

    workdir: Path
    """Folder of a training run, finished or not."""
    step: int | None = None
    """Which checkpoint; the newest when left out."""
    output: Path | None = None
    """Folder to write; that of the run's own weights when left out."""


def run(options: ExportOptions) -> dict[str, Any]:
    """Carries out `jvdm export`: the averages of a checkpoint become a weights folder.

    Raises:
        CheckpointError: If there is no such checkpoint, it cannot be read, or it does not say
            what was trained.
        ConfigError: If the folder cannot be written.
        WeightsError: If a part that goes along is no longer there.
    """
    arrays, meta = read_checkpoint(options.workdir / "checkpoints", options.step)
    step = int(arrays["step"])
    fix = f"start the same `jvdm train` again with --num-steps {step}: then it only exports"
    try:
        recipe = meta.get("export", {})
        if "why" in recipe:
            raise ConfigError(recipe["why"])
        objective, package = from_data(recipe["objective"]), recipe["package"]
        package = None if package is None else from_data(package)
    except (JvdmError, KeyError) as error:
        what = f"checkpoint {step} in {options.workdir} does not say how it is exported"
        raise CheckpointError(what, str(error), fix) from error
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    leaves = [arrays[f"ema/{name}"] for name in inventory.by_name(shapes)]
    folder = options.output or options.workdir / WEIGHTS
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    check_export(objective, package, None, folder, shapes)
    return {"step": step, **export(objective, package, folder, params)}


def recipe_of(objective: Objective, package: Packaging | None) -> dict[str, Any]:
    """Returns what `jvdm export` needs, as JSON data; in `why`, why it could not use it."""
    if package is not None:
        parts = tuple(str(find(part).absolute()) for part in package.parts)
        package = dataclasses.replace(package, parts=parts)
    elif isinstance(objective, HasFile):
        objective = objective.placed()
    else:
        return {"why": "the experiment has no package"}
    try:
        return {
            "objective": to_data(objective, "objective"),
            "package": package and to_data(package),
        }
    except ConfigError as error:
        return {"why": str(error)}


def check_export(
    objective: Objective,
    package: Packaging | None,
    source: Source | None,
    folder: Path,
    params: PyTree,
) -> None:
    """Refuses a run whose weights could not be written or used, before its first step.

    Args:
        objective: What will be trained.
        package: How its weights become a folder; None if they do not.
        source: Where batches come from; None if nothing is trained.
        folder: Where they will be.
        params: Shapes of its parameters.

    Raises:
        WeightsError: If a component cannot be described, a part lacks something, or the
            autoencoder that goes along is not the one whose latents are learnt.
        ConfigError: If `objective` has no components, nothing to measure or another geometry
            than it is measured with, or `folder` cannot be written.
    """
    if isinstance(objective, HasCheck):
        try:
            objective.check(params)
        except JvdmError:
            raise
        except Exception as error:  # whatever tracing makes of it
            what = f"{type(objective).__name__} could not be measured at the end"
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            raise ConfigError(what, why, "change its world or its networks") from error
    if package is None:
        return
    if not isinstance(objective, HasComponents):
        what = f"{type(objective).__name__} does not say which components it trains"
        why = "a package was asked for"
        raise ConfigError(what, why, "give it `components(params)`, or package=None")
    taken = check_package(folder, package, objective.components(params), _rules(objective))
    if isinstance(source, MakesLatents) and source.vae_weights is not None and "vae" in taken:
        mine, goes_along = find(source.vae_weights), taken["vae"]
        if autoencoder(mine) != autoencoder(goes_along):
            what = f"latents come from {mine}, and the autoencoder of {goes_along} goes along"
            fix = "give --source.vae-weights and --package.parts the same autoencoder"
            raise WeightsError(what, "the weights would not fit together", fix)


def export(
    objective: Objective, package: Packaging | None, folder: Path, params: PyTree
) -> dict[str, Any]:
    """Measures `params`, writes them as `package` says; returns what was measured, and where.

    Of several processes one does, the others wait and return nothing.
    """
    params = processes.fetch(params)
    reached = _export(objective, package, folder, params) if processes.writes() else {}
    processes.barrier(f"export {folder}")
    return reached


def _export(
    objective: Objective, package: Packaging | None, folder: Path, params: PyTree
) -> dict[str, Any]:
    summary = objective.summary(params) if isinstance(objective, HasSummary) else {}
    if isinstance(objective, HasFile):
        return {**summary, "weights": str(objective.write(folder, params))}
    if package is None or not isinstance(objective, HasComponents):
        return {**summary, "weights": None}
    write_package(folder, package, objective.components(params), summary, _rules(objective))
    return {**summary, "weights": str(folder)}


def _rules(objective: Objective) -> Mapping[str, Any]:
    """Returns process, prediction and sampling, if a system is trained."""
    return objective.rules if isinstance(objective, HasRules) else {}


def text(result: dict[str, Any]) -> str:
    """Says what a run reached, one number per line."""
    shown = {name: f"{value:.4g}" for name, value in result.items() if isinstance(value, float)}
    return "\n".join(f"{name:>20}  {shown.get(name, value)}" for name, value in result.items())
