"""What a config file returns: everything that determines a training run."""

import dataclasses
from pathlib import Path
from typing import Any

from jvdm.errors import ConfigError
from jvdm.training.objective import Objective, Preview, Source
from jvdm.training.optimizer import Optimizer
from jvdm.values import fields_of
from jvdm.weights.folder import located
from jvdm.weights.package import Packaging


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run as a value: equal experiments give equal runs.

    The objects are the configuration: modules, objectives, sources and
    optimizers are frozen dataclasses and are used as they stand.
    """

    name: str
    """Name of the run and of its files."""
    objective: Objective
    """What is trained, and its loss."""
    source: Source
    """Where batches come from."""
    optimizer: Optimizer = Optimizer()
    """How parameters move."""
    batch_size: int = 256
    """Clips per step, over all devices."""
    num_steps: int = 1000
    """Steps of the whole run; the learning rate decays towards it."""
    seed: int = 0
    """Seed of the initial parameters and of every draw in training."""
    start_from: Path | None = None
    """Weights folder, name of embedded weights or safetensors file of all parameters, of the
    same model, that training starts from."""
    ema_decay: float = 0.9995
    """Decay of the average of the parameters that is exported."""
    log_every: int = 20
    """Steps between two lines of metrics."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    sample_every: int = 0
    """Steps between two sample sheets; 0 for none."""
    max_skipped: int = 20
    """Non-finite steps in a row after which the run stops."""
    package: Packaging | None = None
    """How the averaged parameters become a weights folder; None writes none."""
    preview: Preview | None = None
    """What sample sheets show."""

    def __post_init__(self) -> None:
        """Checks what can be checked without a device."""
        for name in ("batch_size", "num_steps", "keep_checkpoints", "max_skipped"):
            if (value := getattr(self, name)) < 1:
                flag = f"--{name.replace('_', '-')}"
                why = "nothing would be trained or kept"
                raise ConfigError(f"{flag} is {value}", why, "use 1 or more")
        if not 0 <= self.ema_decay < 1:
            what = f"--ema-decay is {self.ema_decay}"
            raise ConfigError(what, "it is a share of the average that is kept", "use .9 to .9999")
        if self.sample_every and self.preview is None:
            what = f"--sample-every {self.sample_every}: {self.name} has no preview"
            raise ConfigError(what, "there is nothing to show", "use 0, or set `preview`")


def describe(value: Any) -> Any:
    """Returns `value` as JSON data, for people and comparisons.

    Dataclasses become `{"class": ..., fields}`; paths `{"path": ..., "sha256": ...}`, of which
    only the content of weights counts in comparisons.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: describe(item) for name, item in fields_of(value).items()}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, Path):
        return located(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", str(value))
