"""Guidance: one denoiser made of several branches, each the network with other conditions.

A rule says which branches it needs and how it combines them. Rules are pytrees: their numbers
are leaves, so that another scale is no other program; names and `execution` are structure.
`guided` makes the denoiser. Evaluated together, branches are a *branch-major* batch of `n * B`:
all samples of branch 0, then all of branch 1; conditions and carry are of that batch. Evaluated
one after the other they need the memory of one, and each has a carry of its own.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jvdm.arrays import Array, Bool, Float, PyTree, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Call, Denoised, Denoiser, PerFrame, in_window
from jvdm.samplers.process import Process, divide, expand, from_x0_eps, to_x0_eps

Execution = Literal["batched", "sequential"]
"""Whether the branches are one call of the network, or one call each."""

BranchWeights = Float[Array, " n"] | Float[Array, "n B F"]
"""One weight per branch, or per branch and frame."""

Scale = float | Float[Array, ""]

UNCONDITIONAL, PROMPT = "unconditional", "prompt"


@runtime_checkable
class Guidance(Protocol):
    """A rule: a frozen dataclass that is registered as a pytree.

    Unless it says otherwise, it is the weighted sum of its branches. The sum is the same in
    `x0`, `eps` and velocity as long as the weights sum to 1.
    """

    execution: Execution = "batched"
    """How the branches are evaluated (static)."""

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches (static); the last one is told the most."""
        return UNCONDITIONAL, PROMPT

    def weigh(self, call: Call) -> BranchWeights:
        """Returns the weight of each branch."""
        raise NotImplementedError

    def needed(self, call: Call) -> Bool[Array, " n"]:
        """Returns which branches matter; others are left out where they run one by one."""
        weights = self.weigh(call)
        return jnp.any(weights != 0, axis=tuple(range(1, weights.ndim)))

    def combine(self, branches: list[Denoised], x: Array, call: Call, process: Process) -> Denoised:
        """Returns what the branches say together; one that is not needed says 0."""
        weights = self.weigh(call)
        return Denoised(
            _weighted_sum(weights, [branch.x0 for branch in branches]),
            _weighted_sum(weights, [branch.eps for branch in branches]),
        )

    def view(self, branch: str, x: Array, call: Call, process: Process) -> tuple[Array, Call]:
        """Returns what a branch is shown: the latents at their levels, unless a rule differs."""
        return x, call

    @property
    def remembers(self) -> bool:
        """Whether the rule needs what it said in earlier steps, per frame (static)."""
        return False

    def first_memory(self, shape: tuple[int, ...]) -> PyTree:
        """Returns what is remembered at first, arrays `[B, F, ...]` of 0: one like the latents."""
        return jnp.zeros(shape, jnp.float32)

    def needed_after(self, memory: PyTree, call: Call) -> Bool[Array, " n"]:
        """Returns which branches matter after earlier steps, as `needed` without."""
        return self.needed(call)

    def combine_after(
        self, memory: PyTree, branches: list[Denoised], x: Array, call: Call, process: Process
    ) -> tuple[Denoised, PyTree]:
        """Returns what the branches say together after earlier steps, and what to remember."""
        return self.combine(branches, x, call, process), memory

    def settled(self) -> "Guidance":
        """Returns the rule with the fewest branches that says the same."""
        return self


def guided(
    rule: Guidance, denoiser_of: Callable[[tuple[str, ...]], Denoiser], process: Process
) -> Denoiser:
    """Returns the denoiser that follows a rule; its first carry is `guided_carry`.

    Args:
        rule: The rule. One by one, a branch that no frame of a row needs is skipped and keeps
            its carry, unless the row writes to it.
        denoiser_of: Returns the denoiser of the branch-major batch of the named branches.
        process: The corruption process.
    """
    if rule.execution == "sequential":
        denoisers = [denoiser_of((name,)) for name in rule.branches]
        evaluate = functools.partial(_one_by_one, rule, denoisers, process)
    else:
        evaluate = functools.partial(_together, rule, denoiser_of(rule.branches), process)

    def follow(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
        if not rule.remembers:
            branches, carry = evaluate(rule.needed(call), x, call, carry)
            return rule.combine(branches, x, call, process), carry
        memory, carry = carry
        needed = rule.needed_after(memory.seen(call.row, x.shape[1]), call)
        branches, carry = evaluate(needed, x, call, carry)
        denoised, memory = remembered(rule, memory, branches, x, call, process)
        return denoised, (memory, carry)

    return follow


def remembered(
    rule: Guidance,
    memory: PerFrame,
    branches: list[Denoised],
    x: Array,
    call: Call,
    process: Process,
) -> tuple[Denoised, PerFrame]:
    """Returns what the branches say together after earlier steps, and the memory of all frames."""
    before = memory.seen(call.row, x.shape[1])
    denoised, after = rule.combine_after(before, branches, x, call, process)

    def put(values: Array, after: Array, before: Array) -> Array:
        # A frame that is frozen, or asked about a second time in its step, remembers nothing new.
        after = jnp.where(expand(call.t != call.t_next, after), after, before)
        return jax.lax.dynamic_update_slice_in_dim(values, after, call.row.start, axis=1)

    return denoised, PerFrame(jax.tree.map(put, memory.values, after, before))


def guided_carry(
    rule: Guidance,
    carry_of: Callable[[tuple[str, ...]], PyTree],
    shape: Sequence[int] | None = None,
) -> PyTree:
    """Returns the first carry of `guided`: that of all branches, or a tuple of one for each.

    Args:
        rule: The rule; one that remembers adds its memory, of all frames.
        carry_of: Returns the carry of the branch-major batch of the named branches.
        shape: Shape of the latents `[B, F, ...]`, for rules that remember.
    """
    if rule.execution == "sequential":
        carry: PyTree = tuple(carry_of((name,)) for name in rule.branches)
    else:
        carry = carry_of(rule.branches)
    if not rule.remembers:
        return carry
    assert shape is not None, "a rule that remembers needs the shape of the latents"
    return PerFrame(rule.first_memory(tuple(shape))), carry


_rule = jax.tree_util.register_dataclass
_STATIC = {"static": True}


@no_type_check
@_rule
@dataclass(frozen=True)
class Unguided(Guidance):
    """The network itself: one branch.

    Attributes:
        branch: Its name (static).
    """

    branch: str = field(default=PROMPT, metadata=_STATIC)

    @property
    def branches(self) -> tuple[str, ...]:
        """The only one."""
        return (self.branch,)

    def weigh(self, call: Call) -> BranchWeights:
        """Returns 1."""
        return jnp.ones(1)

    def combine(self, branches: list[Denoised], x: Array, call: Call, process: Process) -> Denoised:
        """Returns what it says."""
        return branches[0]


@no_type_check
@_rule
@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Away from what is said without condition, towards what is said with it.

    Attributes:
        scale: 1 is the conditional prediction, above 1 exaggerates the condition.
        execution: Whether the branches are one call (static).

    Reference: Ho and Salimans, arXiv:2207.12598.
    """

    scale: Scale
    execution: Execution = field(default="batched", kw_only=True, metadata=_STATIC)

    def weigh(self, call: Call) -> BranchWeights:
        """Returns `(1 - scale, scale)`."""
        scale = jnp.asarray(self.scale, jnp.float32)
        return jnp.stack([1.0 - scale, scale])

    def settled(self) -> Guidance:
        """A scale of 1 needs no other branch."""
        return Unguided() if _is_number(self.scale) and self.scale == 1 else self


@no_type_check
@_rule
@dataclass(frozen=True)
class Interval(ClassifierFree):
    """Classifier-free guidance of frames at `low <= t <= high`, none elsewhere.

    Attributes:
        scale: Guidance scale.
        low: Cleanest level with guidance.
        high: Noisiest level with guidance.
        execution: Whether the branches are one call; one by one, rows whose levels all lie
            outside cost one evaluation (static).

    Reference: Kynkaanniemi et al., arXiv:2404.07724.

    Raises:
        ConfigError: If the interval is known to be empty.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if _is_number(self.low) and _is_number(self.high) and self.low > self.high:
            raise ConfigError(
                f"guidance from level {self.low} to {self.high}", "no level is in between"
            )

    def weigh(self, call: Call) -> BranchWeights:
        """Returns the weights of every frame."""
        inside = (call.t >= self.low) & (call.t <= self.high)
        scale = jnp.where(inside, jnp.asarray(self.scale, call.t.dtype), 1.0)
        return jnp.stack([1.0 - scale, scale])


@no_type_check
@_rule
@dataclass(frozen=True)
class PlusPlus(ClassifierFree):
    """Guided data, but the noise of the branch without condition, so that steps stay on path.

    Attributes:
        scale: Weight of the condition, 0 to 1: an interpolation, not an exaggeration.
        execution: Whether the branches are one call (static).

    Reference: CFG++, Chung et al., arXiv:2406.08070, algorithm 2; meant for `DDIM`.

    Raises:
        ConfigError: If the scale is known to lie outside 0 to 1.
    """

    def __post_init__(self) -> None:
        if _is_number(self.scale) and not 0 <= self.scale <= 1:
            raise ConfigError(
                f"CFG++ with a scale of {self.scale}",
                "it interpolates between two predictions",
                "use 0 to 1; a guidance scale of 7.5 is about 0.6",
            )

    def needed(self, call: Call) -> Bool[Array, " n"]:
        """The noise is that of the first branch at every scale."""
        return super().needed(call) | jnp.array([True, False])

    def combine(self, branches: list[Denoised], x: Array, call: Call, process: Process) -> Denoised:
        """Returns the sum in data, and the noise of the first branch."""
        return super().combine(branches, x, call, process)._replace(eps=branches[0].eps)

    def settled(self) -> Guidance:
        """Returns itself: a scale of 1 has the noise of the other branch."""
        return self


@no_type_check
@_rule
@dataclass(frozen=True)
class Rescaled(ClassifierFree):
    """Classifier-free guidance whose clean data keep the contrast of the conditional branch.

    Attributes:
        scale: Guidance scale.
        share: 0 is plain guidance; 1 gives every sample the standard deviation that the
            conditional branch has.
        execution: Whether the branches are one call (static).

    Reference: Lin et al., arXiv:2305.08891, equations 15 and 16, here on `x0`; the noise
    is what `x_t` leaves for it.
    """

    share: float = 0.7

    def combine(self, branches: list[Denoised], x: Array, call: Call, process: Process) -> Denoised:
        """Returns the sum with other data."""
        x0, eps = super().combine(branches, x, call, process)
        axes, given = tuple(range(1, x.ndim)), branches[1].x0
        spread = divide(jnp.std(given, axes, keepdims=True), jnp.std(x0, axes, keepdims=True))
        return Denoised(x0 * (self.share * spread + 1.0 - self.share), eps)


@no_type_check
@_rule
@dataclass(frozen=True)
class ZeroStar(ClassifierFree):
    """Guidance away from the best multiple of the unconditional velocity.

    `u = s u_0 + scale (u_1 - s u_0)`, with `s = <u_1, u_0> / |u_0|^2` for each sample.

    Attributes:
        scale: Guidance scale.
        zero_above: Frames at levels of this and above stand still (zero initialisation);
            None is none of them.
        execution: Whether the branches are one call (static).

    Reference: CFG-zero*, Fan et al., arXiv:2503.18886, equations 8 to 10.
    """

    zero_above: float | None = None

    def combine(self, branches: list[Denoised], x: Array, call: Call, process: Process) -> Denoised:
        """Returns the sum of velocities as data and noise."""
        without, given = (
            from_x0_eps(process, "velocity", branch.x0, branch.eps, call.t) for branch in branches
        )
        axes = tuple(range(1, x.ndim))
        along = jnp.sum(given * without, axes, keepdims=True)
        best = divide(along, jnp.sum(without * without, axes, keepdims=True))
        velocity = _weighted_sum(self.weigh(call), [best * without, given])
        if self.zero_above is not None:
            velocity = jnp.where(expand(call.t >= self.zero_above, x), 0.0, velocity)
        return Denoised(*to_x0_eps(process, "velocity", velocity, x, call.t))

    def settled(self) -> Guidance:
        """A scale of 1 needs no other branch, if no frame is to stand still."""
        return super().settled() if self.zero_above is None else self


@no_type_check
@_rule
@dataclass(frozen=True)
class Weighted(Guidance):
    """A weighted sum of any branches: two nested conditions are `(1 - s1, s1 - s2, s2)`.

    Attributes:
        names: Names of the branches (static).
        weights: One per branch, or an array `[n]` or `[n, B, F]`.
        execution: Whether the branches are one call (static).

    Raises:
        ConfigError: If weights that are known do not fit the names or do not sum to 1.
    """

    names: tuple[str, ...] = field(metadata=_STATIC)
    weights: tuple[Scale, ...] | BranchWeights
    execution: Execution = field(default="batched", kw_only=True, metadata=_STATIC)

    def __post_init__(self) -> None:
        _check_weights(self.names, self.weights)

    @property
    def branches(self) -> tuple[str, ...]:
        """The names."""
        return self.names

    def weigh(self, call: Call) -> BranchWeights:
        """Returns the weights, of the frames of the window where each has its own."""
        if isinstance(self.weights, tuple):
            return jnp.stack([jnp.asarray(weight, jnp.float32) for weight in self.weights])
        if self.weights.ndim == 1:
            return self.weights
        return in_window(self.weights, call.row, call.t.shape[1], axis=2)

    def settled(self) -> Guidance:
        """Leaves out the branches whose weight is the number 0."""
        if not isinstance(self.weights, tuple):
            return self
        kept = [
            (name, weight)
            for name, weight in zip(self.names, self.weights, strict=True)
            if not (_is_number(weight) and weight == 0)
        ]
        names, weights = zip(*kept, strict=True)
        if len(names) == 1 and _is_number(weights[0]):
            return Unguided(names[0])
        return Weighted(names, weights, execution=self.execution)


def _is_number(value: object) -> bool:
    """Whether this is a number of Python, which no program is traced for."""
    return isinstance(value, float | int)


def _together(
    rule: Guidance,
    denoiser: Denoiser,
    process: Process,
    _: Bool[Array, " n"],
    x: Array,
    call: Call,
    carry: PyTree,
) -> tuple[list[Denoised], PyTree]:
    """Evaluates all branches as one batch, needed or not."""
    denoised, carry = denoiser(*shown(rule, rule.branches, process, x, call), carry)
    parts = (value.reshape(len(rule.branches), *x.shape) for value in denoised)
    return [Denoised(x0, eps) for x0, eps in zip(*parts, strict=True)], carry


def shown(
    rule: Guidance, branches: Sequence[str], process: Process, x: Array, call: Call
) -> tuple[Array, Call]:
    """Returns latents and call of a branch-major batch of branches, as networks are told them."""
    views, calls = zip(*(rule.view(name, x, call, process) for name in branches), strict=True)
    every = (views, [one.t for one in calls], [one.t_next for one in calls])
    # Stacked, not concatenated: on a mesh that splits videos they stay where they are.
    x, t, t_next = (jnp.stack(each).reshape(-1, *each[0].shape[1:]) for each in every)
    return x, Call(t, t_next, call.row._replace(draws=None))


def _one_by_one(
    rule: Guidance,
    denoisers: list[Denoiser],
    process: Process,
    needed: Bool[Array, " n"],
    x: Array,
    call: Call,
    carry: PyTree,
) -> tuple[list[Denoised], PyTree]:
    """Evaluates the branches that matter, and all where the row is written to a cache."""
    needed = needed | jnp.any(call.row.write)

    def evaluate(name: str, branch: Denoiser, carry: PyTree) -> tuple[Denoised, PyTree]:
        denoised, carry = branch(*shown(rule, (name,), process, x, call), carry)
        return Denoised(*(value.astype(x.dtype) for value in denoised)), carry

    def skip(carry: PyTree) -> tuple[Denoised, PyTree]:
        return Denoised(jnp.zeros_like(x), jnp.zeros_like(x)), carry

    said = [
        jax.lax.cond(needed[i], functools.partial(evaluate, name, branch), skip, carry[i])
        for i, (name, branch) in enumerate(zip(rule.branches, denoisers, strict=True))
    ]
    branches, carries = zip(*said, strict=True)
    return list(branches), carries


def _weighted_sum(weights: BranchWeights, parts: list[Array]) -> Array:
    """Adds one by one: XLA on CPU below jaxlib 0.11 adds two weighted sums over the first axis
    of `[n, 1, ...]`, 4,096 numbers and more, to a wrong result that holds unwritten memory.
    """
    terms = [expand(weight, part) * part for weight, part in zip(weights, parts, strict=True)]
    return functools.reduce(jnp.add, terms)


def _check_weights(names: tuple[str, ...], weights: PyTree) -> None:
    """Refuses weights that are known, all of them, and do not sum to 1."""
    leaves = jax.tree.leaves(weights)
    if not all(isinstance(x, float | int | np.ndarray | jax.Array) for x in leaves):
        return
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return
    values = np.asarray(weights, np.float64)
    if values.shape[:1] != (len(names),):
        raise ConfigError(
            f"guidance weights of shape {values.shape} for {len(names)} branches",
            "each branch has one",
            f"give the weights of {', '.join(names)}",
        )
    sums = values.sum(axis=0)
    if np.abs(sums - 1.0).max() > 1e-4:
        place = np.unravel_index(np.abs(sums - 1.0).argmax(), sums.shape)
        of = dict(zip(("sample", "frame"), place, strict=False)) if sums.ndim == 2 else {}
        where = "".join(f" of {name} {int(i)}" for name, i in of.items())
        raise ConfigError(
            f"guidance weights{where} sum to {sums[place]:g}",
            "with another sum than 1, noise and data of a step no longer fit together",
            "give the branch without condition one minus the other weights",
        )
