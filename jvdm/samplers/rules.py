"""Rules that make the levels and the timestep matrix of a run: what a system composes.

Each is a registered dataclass: its structure is static, its numbers are leaves. They are called
on the host, before the run; what enters a program is the matrix that they make.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax

from jvdm.arrays import Array, Float, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.diffusers_levels import diffusers_levels, read_scheduler, tokens_mu
from jvdm.samplers.layouts import trapezoid_matrix
from jvdm.samplers.levels import (
    beta_levels,
    exp_shift_levels,
    explicit_levels,
    exponential_levels,
    karras_levels,
    linear_quadratic_levels,
    linspace_levels,
    shift_levels,
)
from jvdm.samplers.matrices import (
    TimestepMatrix,
    freeze,
    lag_matrix,
    synchronous,
    truncate,
    windowed,
)
from jvdm.samplers.schedules import Spacing, spaced_steps, step_levels

_STATIC = {"static": True}
_rule = jax.tree_util.register_dataclass


@runtime_checkable
class LevelsRule(Protocol):
    """Makes a grid of levels; one with `num_steps` makes as many steps."""

    def __call__(self) -> Array:
        """Returns the levels f32[S + 1], descending to 0."""
        ...


@no_type_check
@_rule
@dataclass(frozen=True)
class ShiftedLevels:
    """Equally spaced levels, moved towards noise (`shift_levels`).

    Attributes:
        num_steps: Number of steps (static).
        shift: Factor of the noise-to-signal ratio; 1 moves nothing.
    """

    num_steps: int = dataclasses.field(metadata=_STATIC)
    shift: float = 1.0

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        return shift_levels(linspace_levels(self.num_steps), self.shift)


@no_type_check
@_rule
@dataclass(frozen=True)
class ExpShiftedLevels:
    """Equally spaced levels, moved towards noise by `exp(mu)` (`exp_shift_levels`).

    Attributes:
        num_steps: Number of steps (static).
        mu: Logarithm of the factor; `resolution_mu` has the one of a size.
    """

    num_steps: int = dataclasses.field(metadata=_STATIC)
    mu: float

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        return exp_shift_levels(linspace_levels(self.num_steps), self.mu)


@no_type_check
@_rule
@dataclass(frozen=True)
class KarrasLevels:
    """Levels whose `rho`-th roots are equally spaced from `high` to `low` (`karras_levels`)."""

    num_steps: int = dataclasses.field(metadata=_STATIC)
    low: float
    high: float
    rho: float = 7.0

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        return karras_levels(self.num_steps, self.low, self.high, self.rho)


@no_type_check
@_rule
@dataclass(frozen=True)
class ExponentialLevels:
    """Levels with equal ratios from `high` to `low` (`exponential_levels`)."""

    num_steps: int = dataclasses.field(metadata=_STATIC)
    low: float
    high: float

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        return exponential_levels(self.num_steps, self.low, self.high)


@no_type_check
@_rule
@dataclass(frozen=True)
class ExplicitLevels:
    """The levels themselves, as given (`explicit_levels`)."""

    levels: Sequence[float]

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self()) - 1

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        return explicit_levels(self.levels)


@no_type_check
@_rule
@dataclass(frozen=True)
class BetaLevels:
    """Quantiles of a beta distribution from `high` to `low` (`beta_levels`)."""

    num_steps: int = dataclasses.field(metadata=_STATIC)
    low: float
    high: float
    alpha: float = 0.6
    beta: float = 0.6

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        return beta_levels(self.num_steps, self.low, self.high, self.alpha, self.beta)


@no_type_check
@_rule
@dataclass(frozen=True)
class LinearQuadraticLevels:
    """Levels that leave noise evenly, then fall quadratically (`linear_quadratic_levels`)."""

    num_steps: int = dataclasses.field(metadata=_STATIC)
    threshold: float = 0.025

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        return linear_quadratic_levels(self.num_steps, self.threshold)


@no_type_check
@_rule
@dataclass(frozen=True)
class StepLevels:
    """Steps of a model that was trained on a table of them (`spaced_steps`, `step_levels`)."""

    num_steps: int = dataclasses.field(metadata=_STATIC)
    spacing: Spacing = dataclasses.field(default="trailing", metadata=_STATIC)
    table_steps: int = dataclasses.field(default=1000, metadata=_STATIC)

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        steps = spaced_steps(self.num_steps, self.spacing, self.table_steps)
        return step_levels(steps, self.table_steps)


@no_type_check
@_rule
@dataclass(frozen=True)
class DiffusersLevels:
    """Levels of a scheduler of Diffusers (`diffusers_levels`).

    Attributes:
        num_steps: Number of steps (static).
        scheduler: What `scheduler_config.json` says; a path is read at once (static).
        mu: Shift of a scheduler that depends on the size; None is that of `tokens`.
        evenly: Whether the pipeline hands it even levels (static).
        tokens: Tokens of the video; a run sets it.
    """

    num_steps: int = dataclasses.field(metadata=_STATIC)
    scheduler: str = dataclasses.field(metadata=_STATIC)
    mu: float | None = None
    evenly: bool = dataclasses.field(default=False, metadata=_STATIC)
    tokens: int | None = None

    def __post_init__(self) -> None:
        text = json.dumps(read_scheduler(self.scheduler), sort_keys=True)
        object.__setattr__(self, "scheduler", text)

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels."""
        mu = tokens_mu(self.scheduler, self.tokens) if self.mu is None else self.mu
        return diffusers_levels(self.scheduler, self.num_steps, mu, self.evenly)


@runtime_checkable
class MatrixRule(Protocol):
    """Makes the timestep matrix of a clip."""

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix of `latent_frames` frames on the grid `levels`."""
        ...


@no_type_check
@_rule
@dataclass(frozen=True)
class SynchronousMatrix:
    """All frames together: ordinary text-to-video sampling."""

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix."""
        return synchronous(levels, latent_frames)


@no_type_check
@_rule
@dataclass(frozen=True)
class LagMatrix:
    """A denoising wave: every block of frames is some rows behind the one before it.

    Attributes:
        lag: Rows between neighbouring blocks (static).
        block: Latent frames per block (static).
        first_block: Latent frames of the first block, None for `block` (static).
    """

    lag: int = dataclasses.field(metadata=_STATIC)
    block: int = dataclasses.field(default=1, metadata=_STATIC)
    first_block: int | None = dataclasses.field(default=None, metadata=_STATIC)

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix."""
        sizes = (self.lag, self.block)
        return lag_matrix(levels, latent_frames, *sizes, first_block=self.first_block)


@no_type_check
@_rule
@dataclass(frozen=True)
class TrapezoidMatrix:
    """Both ends of the video first, the middle last (`trapezoid_matrix`).

    Attributes:
        lag: Rows between neighbouring blocks (static).
        block: Latent frames per block, from either end (static).
    """

    lag: int = dataclasses.field(default=1, metadata=_STATIC)
    block: int = dataclasses.field(default=1, metadata=_STATIC)

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix."""
        return trapezoid_matrix(levels, latent_frames, self.lag, self.block)


@no_type_check
@_rule
@dataclass(frozen=True)
class AutoregressiveMatrix:
    """One block after the other: a wave whose lag is the number of steps.

    Attributes:
        block: Latent frames per block (static).
        first_block: Latent frames of the first block, None for `block` (static).
    """

    block: int = dataclasses.field(default=1, metadata=_STATIC)
    first_block: int | None = dataclasses.field(default=None, metadata=_STATIC)

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix."""
        wave = LagMatrix(levels.shape[0] - 1, self.block, self.first_block)
        return wave(levels, latent_frames)


@no_type_check
@_rule
@dataclass(frozen=True)
class TruncatedMatrix:
    """Starts part of the way down, to change a finished video (`truncate`).

    Attributes:
        rule: The matrix from noise to clean.
        strength: Share of the steps that is made, above 0; 1 starts from noise.

    Raises:
        ConfigError: If the strength lies outside.

    Reference: Meng et al., SDEdit, arXiv:2108.01073.
    """

    rule: MatrixRule
    strength: float

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix, of the shape of the other one; at least one step is made."""
        if not 0 < self.strength <= 1:
            raise ConfigError(
                f"a strength of {self.strength}",
                "it is the share of the steps that change the video",
                "use a number above 0 and up to 1",
            )
        steps = levels.shape[0] - 1
        made = max(1, round(float(self.strength) * steps))
        return truncate(self.rule(levels, latent_frames), steps - made)


@no_type_check
@_rule
@dataclass(frozen=True)
class GivenMatrix:
    """Freezes frames that are given clean: pictures, or the latents of an earlier run.

    Attributes:
        rule: The matrix of the other frames.
        columns: Latent frames that are given; negative ones count from the end (static).
    """

    rule: MatrixRule
    columns: tuple[int, ...] = dataclasses.field(metadata=_STATIC)

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix with these columns at level 0."""
        columns = [column % latent_frames for column in self.columns]
        return freeze(self.rule(levels, latent_frames), columns)


@no_type_check
@_rule
@dataclass(frozen=True)
class WindowedMatrix:
    """Feeds the frames in work to the network, and finished ones before them (`windowed`).

    Attributes:
        rule: The matrix of all frames.
        window: Latent frames that are fed; None is those in work (static).
        context: Finished frames before those in work that are fed at least (static).

    Raises:
        ConfigError: If more frames are in work than the window has.
    """

    rule: MatrixRule
    window: int | None = dataclasses.field(default=None, metadata=_STATIC)
    context: int = dataclasses.field(default=0, metadata=_STATIC)

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix; a video shorter than the window is fed whole."""
        matrix = windowed(self.rule(levels, latent_frames))
        window = matrix.window if self.window is None else self.window
        if window < matrix.window:
            raise ConfigError(
                f"a window of {self.window} latent frames",
                f"{matrix.window} frames are in work together",
                f"use a window of {matrix.window} or more, or a larger lag",
            )
        return windowed(matrix, max(self.context, window - matrix.window))
