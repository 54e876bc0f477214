"""Layers in stages: each device has some layers, and hands its tokens to the next device."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float


@dataclasses.dataclass
class Relay:
    """What the layers of a stage begin with, and what they end with.

    Attributes:
        given: Tokens of the stage before.
        first: Whether this stage is the first, which begins with tokens of latents.
        made: Tokens after the layers, once they are traced.
    """

    given: Float[Array, "B F P D"]
    first: Bool[Array, ""]
    made: Float[Array, "B F P D"] | None = None


_RELAY: contextvars.ContextVar[Relay | None] = contextvars.ContextVar("relay", default=None)


@contextlib.contextmanager
def relaying(relay: Relay) -> Iterator[Relay]:
    """Makes the stack of layers that is traced inside one stage of several."""
    token = _RELAY.set(relay)
    try:
        yield relay
    finally:
        _RELAY.reset(token)


def taken(tokens: Float[Array, "B F P D"]) -> Float[Array, "B F P D"]:
    """Returns the tokens that layers begin with: their own, or those of the stage before."""
    relay = _RELAY.get()
    if relay is None:
        return tokens
    return jnp.where(relay.first, tokens, relay.given.astype(tokens.dtype))


def handed_on(tokens: Float[Array, "B F P D"]) -> None:
    """Keeps the tokens that layers end with, for the next stage."""
    relay = _RELAY.get()
    if relay is not None:
        relay.made = tokens
