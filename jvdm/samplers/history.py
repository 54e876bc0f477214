"""Guidance by the past: branches that see finished frames less clearly, or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, no_type_check
from jvdm.errors import ConfigError
from jvdm.keys import addressed_normal, named
from jvdm.samplers.denoiser import Call
from jvdm.samplers.guidance import (
    PROMPT,
    UNCONDITIONAL,
    BranchWeights,
    ClassifierFree,
    Guidance,
    Scale,
    Weighted,
)
from jvdm.samplers.process import Process, Values, divide, expand

FORGETFUL = f"{UNCONDITIONAL} without history"

_rule = jax.tree_util.register_dataclass


def veiled(x: Values, call: Call, process: Process, level: Scale) -> tuple[Values, Call]:
    """Returns what a branch is shown that sees the past at a noise level.

    Frames that stand in this step below that level, given ones and finished ones, are noised to
    it, with noise of their sample, their frame and the row alone, and told it. Others are as they
    are: those in work, and those that wait as noise.

    Args:
        x: The latents.
        call: The call, within a run.
        process: The corruption process.
        level: Noise level, 0 (all is seen) to pure noise (nothing is); more is pure noise too.

    Raises:
        ConfigError: If the call is not one of a run, which says what stands and draws noise.
    """
    row = call.row
    if row.moving is None or row.draws is None:
        what, why = "the past was to be noised", "this call of the network is not one of a run"
        raise ConfigError(what, why, "let sample, advance or a stream call it")
    level = jnp.minimum(jnp.asarray(level, call.t.dtype), process.t_max)
    level = jnp.broadcast_to(level, call.t.shape)
    past = ~row.moving[None] & (call.t < level)
    t = jnp.where(past, call.t, 0.0)
    kept = divide(process.alpha(level), process.alpha(t))
    added = jnp.sqrt(jnp.maximum(process.sigma(level) ** 2 - (kept * process.sigma(t)) ** 2, 0.0))
    key = jax.random.fold_in(named(row.draws.key, "noise of the past"), row.index)
    frames = row.frame + jnp.arange(x.shape[1])
    noise = addressed_normal(key, row.draws.samples, frames, x.shape[2:]).astype(x.dtype)
    noised = expand(kept, x) * x + expand(added, x) * noise
    told = Call(jnp.where(past, level, call.t), jnp.where(past, level, call.t_next), row)
    return jnp.where(expand(past, x), noised, x), told


@no_type_check
@_rule
@dataclass(frozen=True)
class History(ClassifierFree):
    """Away from what is said without the past, towards what it and then the prompt change.

    Three branches see neither, the past alone, and both; their weights are
    `(1 - history_scale, history_scale - scale, scale)`. With both scales equal it is the history
    guidance of the Diffusion Forcing Transformer, of two branches.

    Attributes:
        scale: Weight of the prompt.
        history_scale: Weight of the past: finished frames, and those that were given.
        level: Noise level at which the first branch sees the past; below pure noise it still knows
            what moves slowly, so that less of the motion is frozen.
        execution: Whether the branches are one call (static).

    Reference: Song et al., history-guided video diffusion, arXiv:2502.06764; the order of both
    conditions is that of MAGI-1, arXiv:2505.13211.

    Raises:
        ConfigError: If the level is known to be negative.
    """

    history_scale: Scale = 1.5
    level: Scale = 1.0

    def __post_init__(self) -> None:
        _check_levels((self.level,))

    @property
    def branches(self) -> tuple[str, ...]:
        """Without the past, with it, and with the prompt."""
        return FORGETFUL, UNCONDITIONAL, PROMPT

    def weigh(self, call: Call) -> BranchWeights:
        """Returns the weight of each branch."""
        past, prompt = (jnp.asarray(w, jnp.float32) for w in (self.history_scale, self.scale))
        return jnp.stack([1.0 - past, past - prompt, prompt])

    def view(self, branch: str, x: Array, call: Call, process: Process) -> tuple[Array, Call]:
        """Returns what a branch is shown."""
        return veiled(x, call, process, self.level) if branch == FORGETFUL else (x, call)

    def settled(self) -> Guidance:
        """Leaves out the branches of weight 0."""
        known = [isinstance(w, float | int) for w in (self.history_scale, self.scale)]
        if known[0] and self.history_scale == 1:
            return ClassifierFree(self.scale, execution=self.execution).settled()
        if all(known) and self.history_scale == self.scale:
            names, weights = (FORGETFUL, PROMPT), (1.0 - self.scale, self.scale)
            levels = (self.level, 0.0)
            return WeightedHistory(names, weights, levels, execution=self.execution)
        return self


@no_type_check
@_rule
@dataclass(frozen=True)
class WeightedHistory(Weighted):
    """A weighted sum of any branches, each of which sees the past at a noise level of its own.

    `names=("unconditional without history", "prompt without much", "prompt")` with the weights
    `(1 - w, w - 1, 1)` and the levels `(1, k, 0)` is fractional guidance, in which the network
    goes on from what all of the past says, and goes further in what a blurred past changes.

    Attributes:
        names: Names of the branches; what follows "without" is free (static).
        weights: One per branch, or an array `[n]` or `[n, B, F]`.
        levels: One per branch, 0 where the past is seen as it is.
        execution: Whether the branches are one call (static).

    Raises:
        ConfigError: If weights or levels do not fit the names, weights do not sum to 1, or a level
            is negative.

    Reference: Song et al., arXiv:2502.06764, section 4.
    """

    levels: tuple[Scale, ...] = field(default=())

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.levels) != len(self.names):
            what = f"{len(self.levels)} levels of the past for {len(self.names)} branches"
            fix = f"give the levels of {', '.join(self.names)}"
            raise ConfigError(what, "each branch sees it at one", fix)
        _check_levels(self.levels)

    def view(self, branch: str, x: Array, call: Call, process: Process) -> tuple[Array, Call]:
        """Returns what a branch is shown."""
        level = dict(zip(self.names, self.levels, strict=True)).get(branch, 0.0)
        seen = isinstance(level, float | int) and level == 0
        return (x, call) if seen else veiled(x, call, process, level)

    def settled(self) -> Guidance:
        """Returns itself: a branch of weight 0 is skipped where branches run one by one."""
        return self


def _check_levels(levels: Sequence[Any]) -> None:
    """Refuses levels that are known and negative, or no numbers; others may be shapes."""
    for level in levels:
        if isinstance(level, float | int) and not level >= 0:
            what = f"a branch of guidance sees the past at the level {level}"
            raise ConfigError(what, "0 shows it as it is, and more hides it", "use 0 to 1")
