"""Rows that reuse what the layers did: the change that the stack made of its tokens is kept.

A row that reuses adds the kept change to its own tokens; embedding, modulation and head are those
of the row. One decision is made for all frames, samples and branches of a call: it computes if any
frame that moves needs it; frames at rest never ask.

References: TeaCache, Liu et al., arXiv:2411.19108; MagCache, Ma et al., arXiv:2506.09045; first
block caching of ParaAttention and Diffusers (`first_block_cache`); the extrapolation is the first
order of TaylorSeer, arXiv:2503.06923, in noise levels instead of steps.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int, NoiseLevels, PyTree, instances
from jvdm.attention import Policy
from jvdm.attention.calibration import check_fingerprint
from jvdm.errors import ConfigError
from jvdm.samplers import Call, Process
from jvdm.samplers.process import divide

Tokens = Float[Array, "B F P D"]
Signal = Literal["time", "modulated"]
OTHER = ", or use another cache, as --sampling.cache every"


class Seen(NamedTuple):
    """What a cache may look at before it decides.

    Attributes:
        call: Levels, as the network is told them, and the row.
        modulation: Vectors that the time makes for every frame.
        modulated: Tokens as the first layer modulates them, when asked.
        change: What the layers that always run made of the tokens; None where there are none.
    """

    call: Call
    modulation: Float[Array, "B F n D"]
    modulated: Callable[[], Tokens]
    change: Tokens | None


@no_type_check
@flax.struct.dataclass
class Reused:
    """What a cache hands from one call of the network to the next.

    Attributes:
        change: `[1 + order, B, F, P, D]`, the last computed changes of the stack, newest first.
        at: f32[1 + order, B, F], the levels they were computed at; infinite before the first.
        error: f32[B, F], what reusing has cost since, in the measure of the rule.
        age: i32[], rows in a row that reused.
        signal: What the rule compares with.
        row: i32[2], index of the last row and its first frame; -1 before the first.
        computes: bool[], what that row did.
        calls: f32[2], calls of the network, and those of them that computed.
    """

    change: Float[Array, "n B F P D"]
    at: Float[Array, "n B F"]
    error: Float[Array, "B F"]
    age: Int[Array, ""]
    signal: PyTree
    row: Int[Array, " 2"]
    computes: Bool[Array, ""]
    calls: Float[Array, " 2"]


class Stack(NamedTuple):
    """The layers of a network.

    Attributes:
        run: `(tokens, first, end)` to the tokens after these layers, and the states of the
            attention policy in them.
        states: Those of all layers before the call.
        depth: Number of layers.
        some: `(tokens, places, states)` to tokens `[B, A, D]` at these places i32[A] before and
            after all layers, and the states of a policy that has the keys of the others.
    """

    run: Callable[[Tokens, int, int], tuple[Tokens, PyTree]]
    states: PyTree
    depth: int
    some: Callable[[Tokens, Int[Array, " A"], PyTree], tuple[Array, Array, PyTree]] | None = None


@dataclasses.dataclass(frozen=True)
class StepCache:
    """Reuses whatever the rows change: every `longest + 1`-th computes. Other rules are subclasses.

    Attributes:
        longest: Rows in a row that may reuse.
        above: Rows with a moving frame above this noise level compute.
        below: Likewise below this one.
        first: Layers that run in every row.
        order: 0 adds the last change; 1 goes on along the line through the last two, in the
            level of every frame, at twice the memory.

    Raises:
        ConfigError: If a number is outside of its range.
    """

    longest: int = 1
    above: float = 0.95
    below: float = 0.0
    first: int = 0
    order: int = 0

    def __post_init__(self) -> None:
        for name in ("longest", "first"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(
                    f"{name} of a step cache is {value}", "it counts", "use 0 or more"
                )
        if self.order not in (0, 1):
            what = f"order of a step cache is {self.order}"
            raise ConfigError(what, "changes are kept, or the line through two is", "use 0 or 1")
        if self.below >= self.above:
            what = f"a step cache reuses from noise level {self.above} to {self.below}"
            raise ConfigError(what, "levels fall in a run", "choose `above` greater than `below`")

    def told(self, process: Process) -> "StepCache":
        """Returns the rule in the times that a network of this process is told."""
        above, below = model_times(process, (self.above, self.below))
        return dataclasses.replace(self, above=above, below=below)

    def check_weights(self, digests: Mapping[str, str]) -> None:
        """Refuses weights, of whose files these are the sha256, if it was calibrated with others.

        Raises:
            ConfigError: If it was.
        """

    def policy(self, given: Policy) -> Policy:
        """Returns the attention of a network whose attention is `given`: the same."""
        return given

    def init(self, tokens: jax.ShapeDtypeStruct, depth: int) -> Reused:
        """Returns what is kept before the first call.

        Args:
            tokens: Shape `[B, F, P, D]` and type of the tokens of a call.
            depth: Layers of the network.

        Raises:
            ConfigError: If there are not more layers than run in every row.
        """
        if self.first >= depth:
            what = f"{self.first} layers run in every row"
            raise ConfigError(what, f"the network has {depth}: none is left out", "use fewer")
        kept, frames = 1 + self.order, tokens.shape[:2]
        return Reused(
            change=jnp.zeros((kept, *tokens.shape), tokens.dtype),
            at=jnp.full((kept, *frames), jnp.inf),
            error=jnp.zeros(frames),
            age=jnp.int32(0),
            signal=self.first_signal(tokens),
            row=jnp.full(2, -1, jnp.int32),
            computes=jnp.bool_(True),
            calls=jnp.zeros(2),
        )

    def first_signal(self, tokens: jax.ShapeDtypeStruct) -> PyTree:
        """Returns the signal before the first call."""
        return ()

    def judge(self, seen: Seen, kept: Reused) -> tuple[Float[Array, "B F"], PyTree]:
        """Returns the error of every frame if this row reuses too, and the signal of the row.

        A row computes where that of a moving frame is 1 or more.
        """
        return jnp.zeros(seen.call.t.shape), ()

    def remember(self, now: PyTree, before: PyTree, computes: Bool[Array, ""]) -> PyTree:
        """Returns the signal that the next row is compared with: that of this one."""
        return now

    def through(
        self, stack: Stack, tokens: Tokens, see: Callable[[Tokens | None], Seen], kept: Reused
    ) -> tuple[Tokens, PyTree, Reused]:
        """Sends tokens through the layers, or adds what they did before.

        Args:
            stack: The layers.
            tokens: Tokens before the first.
            see: Makes `Seen` of the change by the layers that always run.
            kept: What the last call handed on.

        Returns:
            The tokens after the last layer, the states of the layers, and what is handed on.
        """
        change, states = None, ()
        if self.first:
            after, states = stack.run(tokens, 0, self.first)
            change, tokens = after - tokens, after
        seen = see(change)
        error, signal = self.judge(seen, kept)
        row, again, needs = self._decided(seen.call, error, kept)
        old = jax.tree.map(lambda leaf: leaf[self.first :], stack.states)

        def compute() -> tuple[Tokens, PyTree, Array, Array]:
            after, states = stack.run(tokens, self.first, stack.depth)
            changes = jnp.concatenate([(after - tokens)[None], kept.change[: self.order]])
            return after, states, changes, jnp.concatenate([now[None], kept.at[: self.order]])

        def reuse() -> tuple[Tokens, PyTree, Array, Array]:
            return tokens + self._change(seen.call.t, kept), old, kept.change, kept.at

        now = seen.call.t.astype(jnp.float32)
        tokens, rest, changes, at = jax.lax.cond(needs, compute, reuse)
        if self.first:
            rest = jax.tree.map(lambda *parts: jnp.concatenate(parts), states, rest)
        error, age = (jnp.where(needs, 0, one) for one in (error, kept.age + 1))
        judged = (error, age, self.remember(signal, kept.signal, needs))
        before = (kept.error, kept.age, kept.signal)
        error, age, signal = jax.tree.map(
            lambda old, new: jnp.where(again, old, new), before, judged
        )
        calls = kept.calls + jnp.stack([jnp.float32(1), needs.astype(jnp.float32)])
        return tokens, rest, Reused(changes, at, error, age, signal, row, needs, calls)

    def _decided(
        self, call: Call, error: Float[Array, "B F"], kept: Reused
    ) -> tuple[Int[Array, " 2"], Bool[Array, ""], Bool[Array, ""]]:
        """Returns the row of a call, whether it is that of the last call, and whether it computes.

        All calls of a row do the same.
        """
        row = jnp.stack([call.row.index, call.row.frame])
        again = jnp.all(row == kept.row)
        return row, again, jnp.where(again, kept.computes, self._needs(call, error, kept))

    def _needs(self, call: Call, error: Float[Array, "B F"], kept: Reused) -> Bool[Array, ""]:
        """Returns whether the first call of a row computes.

        Later ones do the same, so that a solver of two evaluations compares like with like. Rows
        that write keys and values compute, and so do those of a window that moved.
        """
        moves, last = call.t != call.t_next, kept.at[0]
        asks = (error >= 1) | (call.t > self.above) | (call.t < self.below) | ~(call.t <= last)
        needs = jnp.any(moves & asks) | (kept.age >= self.longest)
        needs |= jnp.any(call.row.write) | (call.row.frame != kept.row[1])
        return needs | (kept.row[0] < 0)

    def _change(self, t: NoiseLevels, kept: Reused) -> Tokens:
        """Returns the change of the stack that a row at these levels reuses."""
        if not self.order:
            return kept.change[0]
        (new, old), (near, far) = kept.change, kept.at
        known = jnp.isfinite(far) & (near < far)
        share = jnp.where(known, (t - near) / jnp.where(known, near - far, 1.0), 0.0)
        return new + (share[..., None, None] * (new - old)).astype(new.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholded(StepCache):
    """What rules share that compute where a change reaches a threshold; one of 0 always does."""

    threshold: float = 0.1
    longest: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold < 0:
            what = f"threshold of a step cache is {self.threshold}"
            raise ConfigError(
                what, "it is a sum of changes", "use 0, which computes always, or more"
            )

    def share(self, change: Float[Array, "B F"]) -> Float[Array, "B F"]:
        """Returns changes as shares of the threshold."""
        return change / self.threshold if self.threshold else jnp.full_like(change, jnp.inf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeaCache(Thresholded):
    """Computes when what modulates the tokens has changed enough since it last did.

    From row to row the relative change of a frame is `x = mean |m - m'| / mean |m'|`; `p(x)`, not
    less than 0, adds up to the error. It is summed frame by frame, over those that move.

    Attributes:
        threshold: Sum of `p(x)` at which rows compute.
        coefficients: Of the polynomial `p`, highest power first; it is fitted for a network and
            a number of steps.
        fitted: Greatest `x` that the polynomial was fitted to; rows beyond it compute.
        signal: `time` is the modulation, so that levels alone decide; `modulated` the tokens as
            the first layer modulates them.
        weights: Of which the polynomial is (`jvdm.attention.calibration`); empty is of any.

    Reference: TeaCache, Liu et al., arXiv:2411.19108, equations 6 and 7.
    """

    coefficients: tuple[float, ...] = (1.0, 0.0)
    fitted: float = 1.0
    signal: Signal = "modulated"
    weights: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.signal not in get_args(Signal):
            what = f"signal of a TeaCache is {self.signal!r}"
            raise ConfigError(
                what, "it compares one of two", f"use {' or '.join(get_args(Signal))}"
            )

    def check_weights(self, digests: Mapping[str, str]) -> None:
        """Refuses the polynomial of other weights."""
        check_fingerprint(self.weights, digests, "a TeaCache", "step_cache", OTHER)

    def first_signal(self, tokens: jax.ShapeDtypeStruct) -> PyTree:
        """Returns zeros: the first row computes anyway."""
        batch, frames, _, width = tokens.shape
        shape = tokens.shape if self.signal == "modulated" else (batch, frames, 6, width)
        return jnp.zeros(shape, tokens.dtype)

    def judge(self, seen: Seen, kept: Reused) -> tuple[Float[Array, "B F"], PyTree]:
        """Adds `p(x)`, as a share of the threshold."""
        now = seen.modulated() if self.signal == "modulated" else seen.modulation
        now = now.astype(kept.signal.dtype)
        x = relative_change(now, kept.signal)
        step = jnp.polyval(jnp.asarray(self.coefficients, jnp.float32), x)
        step = jnp.where(x > self.fitted, jnp.inf, jnp.maximum(step, 0.0))
        return kept.error + self.share(step), now


@dataclasses.dataclass(frozen=True, kw_only=True)
class MagCache(Thresholded):
    """Computes when the size of the change has moved enough since it was computed.

    The mean size of the change of the layers, `exp(G(t))`, depends on the level far more than on
    prompt and seed. A row that reuses adds `|1 - exp(G(t) - G(s))|`, where `s` is the level that
    the change is of. So levels alone decide, whatever the number of steps is.

    Attributes:
        threshold: Sum of these at which rows compute.
        levels: Noise levels that `G` is known at, ascending.
        sizes: `G`, the logarithm of the mean absolute change, at each.
        weights: Of which they are (`jvdm.attention.calibration`); empty is of any.

    Reference: MagCache, Ma et al., arXiv:2506.09045, equations 5 to 8; the paper's ratios of
    neighbouring steps are those of `G`, which holds for any steps.
    """

    threshold: float = 0.12
    levels: tuple[float, ...] = ()
    sizes: tuple[float, ...] = ()
    weights: str = ""
    longest: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(low < high for low, high in itertools.pairwise(self.levels)):
            what = f"a MagCache of levels {self.levels}"
            raise ConfigError(what, "they do not ascend", "write the lowest first")

    def check_weights(self, digests: Mapping[str, str]) -> None:
        """Refuses the sizes of other weights."""
        check_fingerprint(self.weights, digests, "a MagCache", "step_cache", OTHER)

    def told(self, process: Process) -> "MagCache":
        """Returns the rule in the times that a network of this process is told.

        Raises:
            ConfigError: If it was not calibrated.
        """
        if not 2 <= len(self.levels) == len(self.sizes):
            raise ConfigError(
                f"a MagCache of {len(self.levels)} levels and {len(self.sizes)} sizes",
                "it knows a network by the sizes of its changes, one for each of several levels",
                "use --system magcache, calibrated for tiny_t2v and nano, what jvdm attention "
                f"--weights FOLDER --search step_cache prints{OTHER}",
            )
        rule = super().told(process)
        assert isinstance(rule, MagCache)
        return dataclasses.replace(rule, levels=model_times(process, self.levels))

    def judge(self, seen: Seen, kept: Reused) -> tuple[Float[Array, "B F"], PyTree]:
        """Adds how far the size is from that of the kept change, as a share of the threshold."""
        levels, sizes = (jnp.asarray(x, jnp.float32) for x in (self.levels, self.sizes))
        now, then = (jnp.interp(t, levels, sizes) for t in (seen.call.t, kept.at[0]))
        step = jnp.abs(1.0 - jnp.exp(now - then))
        return kept.error + self.share(step), ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstBlockCache(Thresholded):
    """Computes when the first layers change the tokens otherwise than in the last computed row.

    Attributes:
        threshold: Relative change of what the first layers do, of any moving frame, at which rows
            compute.
    """

    threshold: float = 0.05
    first: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.first:
            what, fix = "a FirstBlockCache without first layers", "use 1 or more"
            raise ConfigError(what, "it decides by what they do", fix)

    def first_signal(self, tokens: jax.ShapeDtypeStruct) -> PyTree:
        """Returns zeros: the first row computes anyway."""
        return jnp.zeros(tokens.shape, tokens.dtype)

    def judge(self, seen: Seen, kept: Reused) -> tuple[Float[Array, "B F"], PyTree]:
        """Compares with the last computed row; errors do not add up."""
        assert seen.change is not None
        now = seen.change.astype(kept.signal.dtype)
        return self.share(relative_change(now, kept.signal)), now

    def remember(self, now: PyTree, before: PyTree, computes: Bool[Array, ""]) -> PyTree:
        """Keeps what the first layers did when the others ran."""
        return jnp.where(computes, now, before)


def relative_change(
    now: Float[Array, "B F P D"], before: Float[Array, "B F P D"]
) -> Float[Array, "B F"]:
    """Returns the mean absolute change of every frame over the mean absolute value before."""
    now, before = (x.astype(jnp.float32) for x in (now, before))
    return divide(jnp.abs(now - before).mean((2, 3)), jnp.abs(before).mean((2, 3)))


def model_times(process: Process, levels: Sequence[float]) -> tuple[float, ...]:
    """Returns what networks of a process are told of noise levels."""
    with jax.ensure_compile_time_eval():
        return tuple(np.asarray(process.model_time(jnp.asarray(levels, jnp.float32))).tolist())


def summary(carry: PyTree) -> dict[str, Any]:
    """Returns what the caches in the carry of a run did, as JSON data; empty without any.

    Returns:
        `calls` of the network, all branches of guidance together where they are one call, and
        `computed`, those of them that ran all layers; a call of some tokens counts as their share.
    """
    found = [np.asarray(item.calls) for item in instances(carry, Reused)]
    if not found:
        return {}
    calls, computed = np.sum([count.reshape(-1, 2).sum(0) for count in found], axis=0)
    whole = float(computed).is_integer()
    return {"calls": int(calls), "computed": int(computed) if whole else round(float(computed), 2)}


CACHES: dict[str, StepCache | None] = {
    "none": None,
    "every": StepCache(),
    "tea": TeaCache(),
    "mag": MagCache(),
    "first_block": FirstBlockCache(),
}
"""Step caches by name."""
