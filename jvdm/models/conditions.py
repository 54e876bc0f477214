"""Everything a model is told besides the latents and their noise levels."""

import dataclasses
import typing

import flax.struct

from jvdm.arrays import Array, Bool, Int, Latents, Tokens
from jvdm.errors import ConfigError


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
class PictureStates:
    """Encoded pictures: states `[B, L, D]`, and whether they count, `[B]`."""

    states: Tokens
    known: Bool[Array, " B"]


@typing.no_type_check
@flax.struct.dataclass
class Conditions:
    """The ports of a video model; a port that is None has no effect.

    A port whose weights are freshly initialised has no effect either, so that a
    trained model can be given a new port without being disturbed.
    """

    text: TextStates | None = None
    channel: ChannelCondition | None = None
    pictures: PictureStates | None = None

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
