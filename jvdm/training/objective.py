"""The two protocols of training: what is learned, and from what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import Array, Float, Int, Key, PyTree, UInt8
from jvdm.training.optimizer import Optimizer
from jvdm.weights.package import Components


class TrainCall(NamedTuple):
    """What a loss is told besides parameters and batch.

    Attributes:
        step: Steps done so far.
        key: Random key of this step; a function of the run's seed and `step`.
        ema: Average of the parameters before this step.
        frozen: What `HasFrozen.frozen` gave; `{}` without it.
    """

    step: Int[Array, ""]
    key: Key
    ema: PyTree
    frozen: PyTree


@runtime_checkable
class Objective(Protocol):
    """Something that can be trained: parameters and a loss.

    It may have more: see `HasFrozen`, `HasUpdate`, `HasComponents`, `HasFile`, `HasPasses`,
    `HasSummary` and `HasCheck`.
    """

    def init(self, key: Key) -> PyTree:
        """Returns fresh float32 parameters."""
        ...

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the scalar loss of a batch and scalar metrics."""
        ...


@runtime_checkable
class HasFrozen(Protocol):
    """An objective that needs arrays which do not train: a teacher, an autoencoder, a reader."""

    def frozen(self) -> PyTree:
        """Loads them, once per process; every device gets a copy, no checkpoint does."""
        ...


@runtime_checkable
class Transform(Protocol):
    """What moves parameters; a `optax.GradientTransformation`, or several in one object."""

    def init(self, params: PyTree, /) -> PyTree:
        """Returns the state before the first step."""
        ...


class Updated(NamedTuple):
    """What one step makes of parameters.

    A step whose `loss` or `gradient_norm` is not finite is taken back, so the norm
    must cover every gradient that was used.
    """

    params: PyTree
    opt_state: PyTree
    loss: Array
    gradient_norm: Array
    metrics: dict[str, Array]


@runtime_checkable
class HasUpdate(Protocol):
    """An objective that moves its parameters itself: several optimizers, a discriminator.

    Non-finite steps, the average, counts and checkpoints stay those of every run.
    """

    def transform(self, optimizer: Optimizer, num_steps: int) -> Transform:
        """Returns what `update` is given; its `init` makes the optimizer's state."""
        ...

    def update(
        self, params: PyTree, opt_state: PyTree, batch: PyTree, call: TrainCall, transform: Any
    ) -> Updated:
        """Does one step, traced; parameters may be a tree with a part for each network."""
        ...


@runtime_checkable
class HasComponents(Protocol):
    """An objective whose parameters become a weights folder."""

    def components(self, params: PyTree) -> Components:
        """Returns what is written, by file and name; `params` may be shapes."""
        ...


@runtime_checkable
class HasFile(Protocol):
    """An objective whose parameters become a file of their own, and not a weights folder."""

    def write(self, folder: Path, params: PyTree) -> Path:
        """Writes it into `folder` and returns its path."""
        ...

    def placed(self) -> Any:
        """Returns the objective with full paths, so that it may be used elsewhere."""
        ...


@runtime_checkable
class HasPasses(Protocol):
    """An objective that says what a step costs, in forward passes; others take three."""

    @property
    def passes(self) -> float:
        """Once forward, once or twice backward."""
        ...


@runtime_checkable
class HasRules(Protocol):
    """An objective of a whole system, whose manifest says how it is sampled."""

    @property
    def rules(self) -> Mapping[str, Any]:
        """Process, prediction and sampling as JSON data."""
        ...


@runtime_checkable
class HasSummary(Protocol):
    """An objective that measures what was reached."""

    def summary(self, params: PyTree) -> dict[str, Any]:
        """Returns numbers on held-out data as JSON data; `latent_mean` and `latent_std`
        among them if an autoencoder was trained.
        """
        ...


@runtime_checkable
class HasCheck(Protocol):
    """An objective that can tell before the first step whether `summary` will work."""

    def check(self, params: PyTree) -> None:
        """Raises what `summary` would raise; `params` are shapes, and nothing is computed."""
        ...


@runtime_checkable
class MakesLatents(Protocol):
    """A source that encodes its clips."""

    vae_weights: Path | None
    """Weights folder of the autoencoder."""


@runtime_checkable
class Preview(Protocol):
    """What to show of a running training."""

    def render(
        self, objective: Any, params: PyTree, data: PyTree
    ) -> tuple[Float[Array, "B T H W 3"] | UInt8[np.ndarray, "B T H W 3"], Sequence[str]]:
        """Returns clips, RGB in 0..1 or bytes, and a label for each.

        Args:
            objective: What is trained.
            params: Its averaged parameters.
            data: State of the source.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """Where batches come from; its state is a pytree on the devices.

    Either the state makes batches on the accelerator (`draw` does the work
    inside the training step), or the host puts the next batch into the state
    (`feed`) and `draw` hands it out.
    """

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> PyTree:
        """Returns the state after `position` steps, as an uninterrupted run has it."""
        ...

    def feed(self, data: PyTree) -> PyTree:
        """Does the host's work before a step; the identity for on-device sources."""
        ...

    def draw(self, data: PyTree, step: Int[Array, ""], batch_size: int) -> tuple[PyTree, PyTree]:
        """Returns the batch of `step` and the next state; traced into the step."""
        ...

    def saved(self, data: PyTree) -> bytes:
        """Returns what a checkpoint must keep to continue; may be empty."""
        ...


@runtime_checkable
class HasShapes(Source, Protocol):
    """A source whose `start` takes long: it says before of which shapes its state is.

    A thread of its own calls `start`, while others compile the step and draw parameters.
    """

    def shapes(self, mesh: Mesh) -> PyTree:
        """Returns the state of the source as shapes, placed on `mesh`."""
        ...


class GivenBatch:
    """A source of one batch, the same in every step: to plan and to time steps."""

    def __init__(self, batch: PyTree) -> None:
        self.batch = batch

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> PyTree:
        """Returns the batch."""
        return self.batch

    def feed(self, data: PyTree) -> PyTree:
        """Nothing to do on the host."""
        return data

    def draw(self, data: PyTree, step: Int[Array, ""], batch_size: int) -> tuple[PyTree, PyTree]:
        """Returns the batch."""
        return data, data

    def saved(self, data: PyTree) -> bytes:
        """It is the same in every step."""
        return b""


Metrics = dict[str, Any]
"""Scalar numbers of one step, by name."""
