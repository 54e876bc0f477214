"""Everything a model is told besides the latents and their noise levels."""

import dataclasses
import typing
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Int, Latents, Tokens
from jvdm.errors import ConfigError


@typing.no_type_check
@flax.struct.dataclass
class TextStates:
    """Encoded prompts: states `[B, L, D]` and how many of them count, `[B]`.

    Of a clip in sections (`in_sections`), whose frames are told different prompts, the states of
    all stand side by side, `[B, sections L, D]`, and `lengths` is `[B, sections]`.

    Attributes:
        states: States.
        lengths: How many of them count.
        section: i32[B, F], which prompt each latent frame reads; None is one for all.
        sections: How many prompts there are (static).
        heads: Keys and values of all layers, `[B, depth, L, N, E]` each, if they are made before
            the calls that read them; None lets each call make its own.
    """

    states: Tokens
    lengths: Int[Array, " B"] | Int[Array, "B sections"]
    section: Int[Array, "B F"] | None = None
    sections: int = flax.struct.field(pytree_node=False, default=1)
    heads: tuple[Array, Array] | None = None

    def seen(self, frame: Int[Array, ""], frames: int, states: Tokens) -> "TextStates":
        """Returns what a call is told that sees so many latent frames from `frame` on.

        Args:
            frame: The first of them.
            frames: How many.
            states: The states as its layers read them.
        """
        section = self.section
        if section is not None:
            section = jax.lax.dynamic_slice_in_dim(section, frame, frames, 1)
        return TextStates(states, self.lengths, section, self.sections, self.heads)

    def blended(self, frame: Int[Array, ""], frames: int) -> "TextStates":
        """Returns one prompt for these frames: the mean of those that they read.

        A clip of no more frames keeps the prompts of its sections.
        """
        if self.section is None or self.section.shape[1] <= frames:
            return self
        section = jax.lax.dynamic_slice_in_dim(self.section, frame, frames, 1)
        shares = jax.nn.one_hot(section, self.sections).mean(1)
        states = jnp.stack(jnp.split(self.states, self.sections, 1), 1)
        mean = jnp.sum(shares[:, :, None, None].astype(states.dtype) * states, 1)
        return TextStates(mean, jnp.where(shares > 0, self.lengths, 0).max(1))


def in_sections(parts: Sequence[TextStates], starts: Sequence[int], frames: int) -> TextStates:
    """Returns what a clip is told whose frames read different prompts.

    Args:
        parts: The states of each prompt, of equal shapes.
        starts: The first latent frame of each, ascending from 0.
        frames: Latent frames of the clip.
    """
    section = np.searchsorted(starts, np.arange(frames), side="right") - 1
    return TextStates(
        jnp.concatenate([part.states for part in parts], 1),
        jnp.stack([part.lengths for part in parts], 1),
        jnp.broadcast_to(jnp.asarray(section, jnp.int32)[None], (len(parts[0].states), frames)),
        len(parts),
    )


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
class PictureStates:
    """Encoded pictures: states `[B, L, D]`, and whether they count, `[B]`."""

    states: Tokens
    known: Bool[Array, " B"]


@typing.no_type_check
@flax.struct.dataclass
class PlanCondition:
    """Coarse latents of every frame that a call sees, `[B, F, H, W, C]`, and of which clips.

    `known` is bool[B]; a clip that has none is as one of a model without the port.
    """

    latents: Latents
    known: Bool[Array, " B"]


@typing.no_type_check
@flax.struct.dataclass
class Conditions:
    """The ports of a video model; a port that is None has no effect.

    A port whose weights are freshly initialised has no effect either, so that a
    trained model can be given a new port without being disturbed.

    Attributes:
        text: Prompts.
        channel: Known latent frames.
        pictures: Pictures.
        actions: i32[B, F], what is done while each latent frame comes to be, an index of the
            `actions` of the model; -1 says nothing. Of more frames than a call sees, it sees its
            own.
        plan: What the frames will roughly be.
        outline: Prompts that a model makes its plan from, the same in all branches of guidance.
    """

    text: TextStates | None = None
    channel: ChannelCondition | None = None
    pictures: PictureStates | None = None
    actions: Int[Array, "B F"] | None = None
    plan: PlanCondition | None = None
    outline: TextStates | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the ports that are not None."""
        return tuple(name for name in PORTS if getattr(self, name) is not None)

    def subset(self, *names: str) -> "Conditions":
        """Returns these ports alone.

        Raises:
            ConfigError: If there is no port of a name.
        """
        check_ports(names)
        return Conditions(**{name: getattr(self, name) for name in names})

    def without(self, *names: str) -> "Conditions":
        """Returns all ports but these.

        Raises:
            ConfigError: If there is no port of a name.
        """
        check_ports(names)
        return self.subset(*(name for name in PORTS if name not in names))

    def check(self, ports: tuple[str, ...]) -> None:
        """Refuses conditions that a model with these ports would not see.

        Raises:
            ConfigError: If a condition has no port, or a port is unknown.
        """
        check_ports(ports)
        unseen = [name for name in self.given if name not in ports]
        if unseen:
            wanted = tuple(name for name in PORTS if name in (*ports, *unseen))
            raise ConfigError(
                f"a {' and a '.join(unseen)} condition was given",
                f"this model has {'the ports ' + ', '.join(ports) if ports else 'no ports'}",
                f"leave it out, or build the model with ports={wanted} and train or merge weights",
            )


PORTS = tuple(field.name for field in dataclasses.fields(Conditions))
"""Names of all ports."""


def check_ports(names: tuple[str, ...]) -> None:
    """Raises `ConfigError` for a name that is no port."""
    for name in names:
        if name not in PORTS:
            raise ConfigError(f"no port is called {name!r}", f"there are {', '.join(PORTS)}")
