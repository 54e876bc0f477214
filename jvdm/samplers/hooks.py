"""Hooks: rules that change what a run does from row to row, without a loop of their own.

A hook edits what the network says before the solver uses it, or the latents after a step. Where
it changes the clean data, the noise is again what `x` leaves for it, so that a solver that follows
velocities goes to the new data as one that noises them does. With `hooked` they become a part of
the solver, so they work with any solver, matrix and guidance, and frozen frames keep their bits.
Arrays in a hook have a frame axis 1, which is cut to the window; an axis of size 1 is every
sample's or frame's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Int, PyTree, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Call, Denoised, Denoiser, in_window
from jvdm.samplers.modalities import each, every
from jvdm.samplers.process import Process, divide, expand, mix, to_x0_eps
from jvdm.samplers.solvers import Around, Context, Solver

_rule = jax.tree_util.register_dataclass
_STATIC = {"static": True}
_DRAW = 64  # number of the draw of noise of a step: solvers use small ones

Numbers = float | Array
"""A number, or an array of one rank with the latents."""


@runtime_checkable
class Hook(Protocol):
    """A frozen dataclass that is registered as a pytree; it does one of two things."""

    def edit(self, denoised: Denoised, x: Array, call: Call, process: Process) -> Denoised:
        """Returns what the network says of `x`, changed; a solver sees this alone."""
        return denoised

    def after(self, x_next: Array, context: Context) -> Array:
        """Returns the latents at `context.t_next`, changed after the step."""
        return x_next


def hooked(solver: Any, hooks: Sequence[Hook] | Mapping[str, Sequence[Hook]]) -> Any:
    """Returns the solver with hooks, in order; itself if there are none.

    Args:
        solver: A solver, or one for each modality of the run by name.
        hooks: Hooks, or those of each modality; given alone, they are every modality's.

    Raises:
        ConfigError: If the modalities of both differ.
    """
    solver = every(solver, hooks)
    return each(
        lambda one, its: _Hooked(one, tuple(its)) if its else one, solver, every(hooks, solver)
    )


@dataclass(frozen=True, eq=False)
class _Hooked(Around):
    solver: Solver
    hooks: tuple[Hook, ...]

    def edit(self, denoised: Denoised, x: Array, call: Call, process: Process) -> Denoised:
        for hook in self.hooks:
            denoised = hook.edit(denoised, x, call, process)
        return denoised

    def after(self, x_next: Array, context: Context) -> Array:
        for hook in self.hooks:
            x_next = hook.after(x_next, context)
        return x_next


@no_type_check
@_rule
@dataclass(frozen=True)
class Blend(Hook):
    """Keeps a part of the video at what it is known to be, at the level of every step.

    `x_next = m x_next + (1 - m) (alpha(t_next) source + sigma(t_next) noise)`, with `m = free` at
    levels below `release` and 0 above.

    Attributes:
        source: Clean latents of what is known; with `by_row`, latents of every row after the
            first, `[rows, B, F, ...]`, such as an inversion passed through.
        free: Share that the run decides, 1 where it is free.
        release: Level below which a place is free: 1 frees it at once, 0 never.
        noise: What is known is noised with this, the same in every step; None draws afresh.
        by_row: Whether the source is a recorded run (static).

    Reference: Avrahami et al., Blended Latent Diffusion, arXiv:2206.02779; with `release` the maps
    of EIDT-V, arXiv:2504.06861.
    """

    source: Array
    free: Numbers = 1.0
    release: Numbers = 1.0
    noise: Array | None = None
    by_row: bool = field(default=False, metadata=_STATIC)

    def after(self, x_next: Array, context: Context) -> Array:
        """Returns the latents with the known part put back."""
        t, window = context.t_next, x_next.shape[1]

        def shown(values: Numbers) -> Array:
            values = jnp.asarray(values, x_next.dtype)
            return values if values.ndim == 0 else in_window(values, context.row, window)

        if self.by_row:
            known = in_window(self.source[context.row.index], context.row, window)
        else:
            noise = context.noise(_DRAW) if self.noise is None else shown(self.noise)
            shares = (context.process.alpha(t), context.process.sigma(t))
            known = mix(*shares, jnp.broadcast_to(shown(self.source), x_next.shape), noise)
        free = jnp.where(expand(t, x_next) < shown(self.release), shown(self.free), 0.0)
        return free * x_next + (1.0 - free) * known


@no_type_check
@_rule
@dataclass(frozen=True)
class MomentMatch(Hook):
    """Gives the clean data of every frame brightness and contrast of one frame, per channel.

    Attributes:
        reference: Clean latents `[B, 1, H, W, C]`; None is what the network says of the first
            frame of the window.
        share: How far to go, 0 to 1.
        low: Cleanest level at which it is done.
        high: Noisiest one.

    Reference: AdaIN, arXiv:1703.06868, as LAMP (arXiv:2310.10769) uses it against drifting colours;
    here on `x0`, since frames at other levels have other moments.
    """

    reference: Array | None = None
    share: Numbers = 1.0
    low: Numbers = 0.0
    high: Numbers = 1.0

    def edit(self, denoised: Denoised, x: Array, call: Call, process: Process) -> Denoised:
        """Returns the data with other moments."""
        x0 = denoised.x0
        places = tuple(range(2, x0.ndim - 1))
        wanted = x0[:, :1] if self.reference is None else self.reference
        mean, std = x0.mean(places, keepdims=True), x0.std(places, keepdims=True)
        scale = divide(jnp.broadcast_to(wanted.std(places, keepdims=True), std.shape), std)
        matched = scale * (x0 - mean) + wanted.mean(places, keepdims=True)
        inside = (call.t >= self.low) & (call.t <= self.high)
        x0 = x0 + expand(self.share * inside, x0) * (matched - x0)
        return _from_data(x0, x, call, process)


@no_type_check
@_rule
@dataclass(frozen=True)
class BackProject(Hook):
    """Makes the clean data agree with a measurement: `x0 + strength A+ (y - A x0)`.

    The network's window must hold all frames that a measurement joins.

    Attributes:
        measure: `A`, a linear function of clean latents (static).
        restore: `A+`, with `A A+ A = A` (static).
        measured: `y`.
        strength: 1 makes the data agree exactly if `A A+` is the identity.

    Reference: DDNM, Wang et al., arXiv:2212.00490; over frames: ZeroSmooth,
    arXiv:2406.00908.
    """

    measure: Callable[[Array], Array] = field(metadata=_STATIC)
    restore: Callable[[Array], Array] = field(metadata=_STATIC)
    measured: Array
    strength: Numbers = 1.0

    def edit(self, denoised: Denoised, x: Array, call: Call, process: Process) -> Denoised:
        """Returns data that agree."""
        lacking = self.restore(self.measured - self.measure(denoised.x0))
        return _from_data(denoised.x0 + self.strength * lacking, x, call, process)


@no_type_check
@_rule
@dataclass(frozen=True)
class GradGuide(Hook):
    """Takes the clean data down the slope of an energy: `x0 - scale d energy / d x0`.

    The network is not differentiated.

    Attributes:
        energy: `(x0, target) -> number`, the sum over samples (static).
        target: What the energy compares with, any pytree.
        scale: Length of the step.

    Reference: universal guidance without the network's Jacobian, Bansal et al., arXiv:2302.07121,
    section 3.2.
    """

    energy: Callable[[Array, PyTree], Array] = field(metadata=_STATIC)
    target: PyTree
    scale: Numbers

    def edit(self, denoised: Denoised, x: Array, call: Call, process: Process) -> Denoised:
        """Returns the data one step down."""
        slope = jax.grad(self.energy)(denoised.x0, self.target)
        return _from_data(denoised.x0 - self.scale * slope, x, call, process)


def _from_data(x0: Array, x: Array, call: Call, process: Process) -> Denoised:
    """Returns clean data with the noise that `x` leaves for them."""
    return Denoised(*to_x0_eps(process, "x0", x0, x, call.t))


@dataclass(frozen=True)
class PromptSwitch:
    """What the network is told changes at rows of the run; the program stays one.

    Attributes:
        rows: First row of every stage but the first, ascending.

    Raises:
        ConfigError: If they do not ascend.
    """

    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.rows) != sorted(set(self.rows)) or min(self.rows, default=1) < 1:
            raise ConfigError(
                f"prompts switch at rows {self.rows}", "", "use ascending rows above 0"
            )

    def stage(self, row: int | Int[Array, ""]) -> int | Int[Array, ""]:
        """Returns which stage a row belongs to; a number of the host for one of the host."""
        return sum((row >= first) * 1 for first in self.rows)

    def denoiser(self, told: PyTree, denoiser_of: Callable[[PyTree], Denoiser]) -> Denoiser:
        """Returns the denoiser that is told what belongs to its row.

        Args:
            told: What the network is told in all stages, on a leading axis of every leaf.
            denoiser_of: Returns the denoiser for one stage of it.

        Raises:
            ConfigError: If there is not one for each stage.
        """
        for leaf in jax.tree.leaves(told):
            if leaf.shape[0] != len(self.rows) + 1:
                raise ConfigError(
                    f"{leaf.shape[0]} prompts switch at {len(self.rows)} rows",
                    "the first one holds from row 0 on",
                    "give one prompt more than rows",
                )

        def denoise(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
            now = self.stage(call.row.index)
            return denoiser_of(jax.tree.map(lambda leaf: leaf[now], told))(x, call, carry)

        return denoise
