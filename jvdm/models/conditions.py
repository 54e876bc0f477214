"""Everything a model is told besides the latents and their noise levels."""

import typing

import flax.struct

from jvdm.arrays import Array, Bool, Int, Latents, Tokens


@typing.no_type_check
@flax.struct.dataclass
class TextStates:
    """Encoded prompts: states `[B, L, D]` and how many of them count, `[B]`."""

    states: Tokens
    lengths: Int[Array, " B"]


@typing.no_type_check
@flax.struct.dataclass
class ChannelCondition:
    """Known latent frames that enter beside the noisy ones, as extra channels.

    `latents` holds the known values (any value where unknown), `known` is True
    where they count, per latent cell.
    """

    latents: Latents
    known: Bool[Array, "B F H W"]


@typing.no_type_check
@flax.struct.dataclass
class Conditions:
    """The ports of a video model; a port that is None has no effect.

    A port whose weights are freshly initialised has no effect either, so that a
    trained model can be given a new port without being disturbed.
    """

    text: TextStates
    channel: ChannelCondition | None = None
