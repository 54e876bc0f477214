"""Rows that run the layers for some tokens only: where the layers' work changes most."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, PyTree
from jvdm.attention import Dense, KeptKeys, Policy
from jvdm.errors import ConfigError
from jvdm.models.step_cache import Reused, Seen, Stack, StepCache, Tokens
from jvdm.parallel import token_parts

LEAST = 1e-6  # of the drift, so that a token that never moved comes to its turn too


class Focus(NamedTuple):
    """What decides which tokens run.

    Attributes:
        drift: f32[L], how far the layers' change of a token moved, per row, when it last ran;
            mean over samples and branches.
        waited: f32[L], rows since then.
    """

    drift: Float[Array, " L"]
    waited: Float[Array, " L"]

    def places(self, count: int, moves: Array, impatience: float) -> Int[Array, " A"]:
        """Returns the tokens that run next, ascending: of greatest drift, sooner if they waited.

        Args:
            count: How many.
            moves: bool[L], tokens of frames that take a step; others run last.
            impatience: Growth of the worth of a token with each row that it waits.
        """
        worth = jnp.log(self.drift + LEAST) + impatience * self.waited
        return jnp.sort(jax.lax.top_k(jnp.where(moves, worth, -jnp.inf), count)[1])

    def after(self, moved: Float[Array, " A"], places: Int[Array, " A"]) -> "Focus":
        """Returns the focus after a row that ran the tokens at `places`, whose change `moved`."""
        drift = self.drift.at[places].set(moved / (self.waited[places] + 1))
        return Focus(drift, (self.waited + 1).at[places].set(0))


@dataclasses.dataclass(frozen=True)
class Regions(StepCache):
    """Half of the tokens run the layers; the others reuse what these did to them (RAS).

    A token that runs attends to the keys and values of all, which every layer keeps: fresh ones of
    the tokens that run, those of their last run of the others. Rows above noise level `above`, and
    every `longest + 1`-th, run all tokens. One choice is made for all samples and branches of a
    call. It needs dense attention, and memory for the keys and values of all layers.

    What is ours: tokens run where the change that the layers make of them moved most when they last
    ran, where the paper takes the predictions of least deviation among channels; waiting makes a
    token's turn come sooner, where the published sign puts it off. Modulation and head are those of
    the row, also for tokens that did not run. There are quotas neither by frame nor by patch.

    Attributes:
        share: Tokens that run, in (0, 1].
        impatience: Growth of the logarithm of a token's drift with each row that it waits; large
            ones take all tokens in turn.

    Reference: RAS, Liu et al., arXiv:2502.10389.
    """

    longest: int = 12
    share: float = 0.5
    impatience: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        KeptKeys(self.share)
        if self.impatience <= 0:
            what = f"an impatience of {self.impatience:g}"
            raise ConfigError(what, "some tokens would never run", "use a number above 0")
        if self.first or self.order:
            what = f"regions with first {self.first} and order {self.order}"
            raise ConfigError(what, "all layers run some tokens, and changes are kept", "leave it")

    def policy(self, given: Policy) -> Policy:
        """Returns full attention that keeps keys and values.

        Raises:
            ConfigError: If the attention is another one.
        """
        if type(given) is not Dense:
            what, fix = f"regions with the attention {type(given).__name__}", "use dense attention"
            raise ConfigError(what, "tokens that run attend to the kept keys of all", fix)
        return KeptKeys(self.share)

    def first_signal(self, tokens: jax.ShapeDtypeStruct) -> Focus:
        """Returns a focus on nothing."""
        nothing = jnp.zeros(tokens.shape[1] * tokens.shape[2])
        return Focus(nothing, nothing)

    def through(
        self, stack: Stack, tokens: Tokens, see: Callable[[Tokens | None], Seen], kept: Reused
    ) -> tuple[Tokens, PyTree, Reused]:
        """Sends all tokens through the layers, or some; see `StepCache.through`.

        Raises:
            ConfigError: If several devices share the tokens of a video.
        """
        if token_parts() > 1:
            what, fix = "regions over a mesh that splits tokens", "use data, fsdp or branch"
            raise ConfigError(what, "each device would have others to run", fix)
        call, flat = see(None).call, (tokens.shape[0], -1, tokens.shape[3])
        row, again, needs = self._decided(call, jnp.zeros(call.t.shape), kept)
        moves = jnp.repeat(jnp.any(call.t != call.t_next, 0), tokens.shape[2])
        old = kept.change[0].reshape(flat)

        def everything() -> tuple[Tokens, PyTree, Array, Focus]:
            after, states = stack.run(tokens, 0, stack.depth)
            change = (after - tokens).reshape(flat)
            every = jnp.arange(change.shape[1])
            return after, states, change, kept.signal.after(_moved(change, old), every)

        def some() -> tuple[Tokens, PyTree, Array, Focus]:
            count = stack.states.places.shape[1]
            places = kept.signal.places(count, moves, self.impatience).astype(jnp.int32)
            places = jnp.where(again, stack.states.places[0], places)
            everywhere = jnp.broadcast_to(places[None], stack.states.places.shape)
            states = stack.states._replace(places=everywhere)
            assert stack.some is not None
            before, after, states = stack.some(tokens, places, states)
            new = after - before
            focus = kept.signal.after(_moved(new, old[:, places]), places)
            change = old.at[:, places].set(new)
            return tokens + change.reshape(tokens.shape), states, change, focus

        after, states, change, focus = jax.lax.cond(needs, everything, some)
        focus = jax.tree.map(lambda was, now: jnp.where(again, was, now), kept.signal, focus)
        age = jnp.where(again, kept.age, jnp.where(needs, 0, kept.age + 1))
        at = jnp.where(needs, call.t.astype(jnp.float32)[None], kept.at)
        did = jnp.where(needs, 1.0, self.share)
        calls = kept.calls + jnp.stack([jnp.float32(1), did])
        change = change.reshape(kept.change.shape)
        return after, states, Reused(change, at, kept.error, age, focus, row, needs, calls)


def _moved(new: Float[Array, "B A D"], old: Float[Array, "B A D"]) -> Float[Array, " A"]:
    """Returns the distance between changes of every token, mean over the batch."""
    apart = new.astype(jnp.float32) - old.astype(jnp.float32)
    return jnp.linalg.norm(apart, axis=-1).mean(0)
