"""The end of a run: held-out numbers and a weights folder, checked at the beginning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvdm.arrays import PyTree
from jvdm.errors import ConfigError
from jvdm.training.objective import HasComponents, HasRules, HasSummary, Objective
from jvdm.weights.package import Packaging, check_package, write_package

WEIGHTS = "weights"
"""Folder of the weights in that of a run."""


def check_export(
    objective: Objective, package: Packaging | None, folder: Path, params: PyTree
) -> None:
    """Refuses a run whose weights could not be written, before its first step.

    Args:
        objective: What will be trained.
        package: How its weights become a folder; None if they do not.
        folder: Where they will be.
        params: Its parameters, or their shapes.

    Raises:
        WeightsError: If a component cannot be described, or a part lacks something.
        ConfigError: If `objective` has no components or `folder` cannot be written.
    """
    if package is None:
        return
    if not isinstance(objective, HasComponents):
        what = f"{type(objective).__name__} does not say which components it trains"
        why = "a package was asked for"
        raise ConfigError(what, why, "give it `components(params)`, or package=None")
    check_package(folder, package, objective.components(params), _rules(objective))


def export(
    objective: Objective, package: Packaging | None, folder: Path, params: PyTree
) -> dict[str, Any]:
    """Measures `params`, writes them as `package` says; returns what was measured, and where."""
    summary = objective.summary(params) if isinstance(objective, HasSummary) else {}
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
