"""The transformers of Wan 2.1 and 2.2, with a noise level for every frame.

Wan (Wan Team, arXiv:2503.20314) as Diffusers' `WanTransformer3DModel` computes it; see
`jvdm.models.adaln_single` for what differs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Latents, PyTree, Tokens
from jvdm.errors import ShapeError
from jvdm.models.adaln_single import AdaLNSingle
from jvdm.models.carry import Carry
from jvdm.models.conditions import ChannelCondition, Conditions, PictureStates, TextStates
from jvdm.samplers import Call


class WanDiT(AdaLNSingle):
    """Text to video with the network of Wan; the defaults are those of the 1.3B model of 2.1.

    The 14B models have `width` 5120, `depth` 40 and `mlp_width` 13824, the 5B model of 2.2 has
    3072, 30 and 14336, and 48 `latent_channels`. Levels are told in whole
    thousandths (`whole_thousandths`). The padding of a prompt is zero and is read like the rest;
    the published models know 512 states.

    Attributes:
        rotary_base: Ratio of the slowest to the fastest wavelength of positions.
        cross_norm: Whether tokens are normalised before they read the prompt.
        mask_channels: Of a network that is told pictures beside the noisy latents (the channel
            port): so many channels say which latent frames they are, then their latents. The last
            is that of the newest pixel frame; only in the first latent frame all are known.
        picture_width: Features of the states of pictures (`jvdm.models.clip`) that it reads
            beside the prompt (the port called pictures); 0 where it reads none.
        picture_places: How many states it reads, each with a learnt position: those of the first
            and of the last picture. 0 where it reads the first picture alone, without.
    """

    width: int = 1536
    depth: int = 30
    latent_channels: int = 16
    head_dim: int = 128
    mlp_width: int = 8960
    patch: int = 2
    rotary_base: float = 1e4
    cross_norm: bool = True
    mask_channels: int = 0
    picture_width: int = 0
    picture_places: int = 0

    @property
    def told_pictures(self) -> bool:
        """Whether pictures go to the channel port, instead of frames without noise."""
        return self.mask_channels > 0

    @property
    def ports(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The conditions that it reads."""
        channel, pictures = self.told_pictures, self.reads_pictures > 0
        return ("text", *("channel",) * channel, *("pictures",) * pictures)

    @property
    def reads_pictures(self) -> int:
        """Of how many pictures it reads the states."""
        return 0 if not self.picture_width else 2 if self.picture_places else 1

    @property
    def rotary_axes(self) -> tuple[int, int, int]:
        """Features of a head that turn with time, row and column."""
        side = self.head_dim // 6 * 2
        return (self.head_dim - 2 * side, side, side)

    def made(self) -> dict[str, Any]:
        """Returns the fields of the layers beside those of `TransformerLayer`."""
        return {"centred": True, "cross_norm": self.cross_norm, "head_epsilon": 1e-6}

    def prompt_lengths(self, text: TextStates) -> None:
        """All states are read."""

    def read_pictures(self, conditions: Conditions) -> PictureStates | None:
        """Returns the states of pictures as layers read them: two products between norms."""
        given = conditions.pictures
        if given is None and self.is_initializing() and self.reads_pictures:
            empty = jnp.zeros((1, max(self.picture_places, 1), self.picture_width))
            given = PictureStates(empty, jnp.ones(1, bool))
        if given is None:
            return None
        x = given.states.astype(self.dtype)
        if self.picture_places:
            if x.shape[1] != self.picture_places:
                what = f"{x.shape[1]} states of pictures were given"
                why = f"this model reads {self.picture_places}, of a first and a last picture"
                raise ShapeError(what, why, "give image and last_image")
            places = self.param("picture_places", nn.initializers.zeros, x.shape[1:])
            x = x + places.astype(self.dtype)[None]
        x = self._linear("picture_hidden", x.shape[-1], self._norm("picture_norm_in", x))
        x = self._linear("picture_out", self.width, nn.gelu(x, approximate=False))
        return PictureStates(self._norm("picture_norm_out", x), given.known)

    def _norm(self, name: str, x: Tokens) -> Tokens:
        norm = nn.LayerNorm(1e-5, dtype=jnp.float32, use_fast_variance=False, name=name)
        return norm(x).astype(self.dtype)

    def patched(self, x: Latents, call: Call, conditions: Conditions) -> Float[Array, "B F P E"]:
        """Returns what tokens are made of: squares of cells, with pictures as more channels."""
        if not self.told_pictures:
            return self._patches(x)
        channel, parts = conditions.channel, self.mask_channels
        if channel is None:  # nothing is known
            channel = ChannelCondition(jnp.zeros_like(x), jnp.zeros(x.shape[:-1], bool))
        starts = (call.row.start + jnp.arange(x.shape[1]) == 0)[:, None]
        pixels = starts | (jnp.arange(parts) == parts - 1)[None]
        known = channel.known[..., None] & pixels[None, :, None, None]
        told = jnp.concatenate([x, known.astype(x.dtype), channel.latents.astype(x.dtype)], -1)
        return self._patches(told)


class WanExperts(WanDiT):
    """Two networks of one shape, as in Wan 2.2 A14B: one for noise, one for what is left.

    A call runs the network that the noisiest frame of the clip asks for, and reads the weights of
    that one alone; where clips of a batch ask for different ones, as in training, it runs both, one
    after the other. Weights take the memory of two.

    Attributes:
        boundary: Noisiest level of the second network, in thousandths: at this level and above
            the first one is asked.
    """

    boundary: float = 875.0

    def heard(self, variables: PyTree, conditions: Conditions) -> Conditions:
        """Returns conditions as they are: a call asks one of two networks."""
        return conditions

    @nn.compact
    def __call__(
        self, x: Latents, call: Call, conditions: Conditions, carry: Carry | None = None
    ) -> tuple[Latents, Carry]:
        """Predicts the velocity `noise - clean` of every latent; see `WanDiT`."""
        own = _fields(self)
        if self.is_initializing():
            high, low = (WanDiT(**own, name=name) for name in EXPERTS)
            high(x, call, conditions, carry)
            return low(x, call, conditions, carry)
        expert = WanDiT(**own, parent=None)
        batch, frames, height, width, _ = x.shape
        noisy = jnp.max(call.t, axis=1) >= self.boundary

        def run(name: str) -> Callable[[Carry | None], Any]:
            told = {kind: tree[name] for kind, tree in self.variables.items() if name in tree}
            return lambda carry: expert.apply(told, x, call, conditions, carry)

        def neither(carry: Carry) -> tuple[Latents, Carry]:
            return jnp.zeros((*x.shape[:-1], self.latent_channels)), carry

        before = self.start(frames, height, width, batch=batch) if carry is None else carry
        if carry is None and self.collect:
            collected = jax.eval_shape(run(EXPERTS[0]), None)[1].features
            features = jnp.zeros(collected.shape, collected.dtype)
            before = dataclasses.replace(before, features=features)
        first, after = jax.lax.cond(jnp.any(noisy), run(EXPERTS[0]), neither, before)
        second, after = jax.lax.cond(jnp.all(noisy), neither, run(EXPERTS[1]), after)
        return jnp.where(noisy[:, None, None, None, None], first, second), after


EXPERTS = ("high", "low")
"""Names of the two networks: that for noise first."""


def experts(network: WanDiT, boundary: float) -> WanExperts:
    """Returns two networks like this one; `boundary` is in thousandths."""
    return WanExperts(**_fields(network), boundary=boundary)


def _fields(network: WanDiT) -> dict[str, Any]:
    """Returns what a network is made of."""
    names = {item.name for item in dataclasses.fields(WanDiT)} - {"parent", "name"}
    return {name: getattr(network, name) for name in names}
