"""Stands for the folder `configs/` in a checkout; a wheel has that folder here instead."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

__path__ = [str(Path(__file__).parents[2] / "configs")]

if TYPE_CHECKING:  # pyright does not follow __path__

    def __getattr__(name: str) -> ModuleType: ...
