"""Chunks of a long video denoised side by side, tied by tokens that read all of it.

Video Interface Networks (VIN), Dedhia et al., arXiv:2503.17539. In every call a small network
reads key frames of the whole noisy video into a fixed number of tokens, and every chunk reads these
beside its prompt; chunks are a batch, so that attention grows with the number of chunks and not
with its square. What neighbours say of the frames that they share is mixed while these are noisy.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, Latents, NoiseLevels, Tokens
from jvdm.errors import ConfigError
from jvdm.features import sinusoids
from jvdm.models.attention import CrossAttention
from jvdm.models.carry import Carry
from jvdm.models.conditions import Conditions, TextStates
from jvdm.models.layers import FeedForward, Linear, RMSNorm, TimeEmbedding
from jvdm.models.video_dit import VideoDiT
from jvdm.samplers import Call, Row, Tiles

_WAVES = 16  # frequencies of each axis of the place of a key token


class Interface(nn.Module):
    """Reads key frames into tokens: once across, then among themselves and the prompt."""

    tokens: int
    width: int
    blocks: int
    head_dim: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        keys: Float[Array, "B K P E"],
        t: Float[Array, "B K"],
        places: Float[Array, "K P 3"],
        text: TextStates,
    ) -> Float[Array, "B L D"]:
        """Returns the tokens, of the width of the prompt's states.

        Args:
            keys: Patches of the key frames.
            t: Their noise levels.
            places: Frame, row and column of every patch, in the whole video.
            text: The prompt.
        """
        count = len(keys)
        first = self.param("tokens", nn.initializers.normal(1.0), (self.tokens, self.width))
        waves = sinusoids(places, _WAVES).reshape(*places.shape[:2], -1)
        (seen,) = Linear((self.width,), self.dtype, bias=True, name="keys_in")(keys)
        (place,) = Linear((self.width,), self.dtype, name="place_in")(waves)
        level = TimeEmbedding(self.width, dtype=self.dtype, name="level")(t)
        seen = RMSNorm(name="keys_norm")(seen + place[None] + level[:, :, None])
        seen = seen.reshape(count, -1, self.width)
        whole = jnp.full((count,), seen.shape[1], jnp.int32)
        z = jnp.broadcast_to(first[None], (count, *first.shape)).astype(self.dtype)
        read = CrossAttention(self.head_dim, self.dtype, name="read")
        z = z + read(RMSNorm(name="read_norm")(z), TextStates(seen, whole))

        (states,) = Linear((self.width,), self.dtype, name="text_in")(text.states)
        y, lengths = jnp.concatenate([z, states], 1), text.lengths + self.tokens
        for index in range(self.blocks):
            mixed = RMSNorm(name=f"mix_norm_{index}")(y)
            mix = CrossAttention(self.head_dim, self.dtype, name=f"mix_{index}")
            y = y + mix(mixed, TextStates(mixed, lengths))
            think = FeedForward(dtype=self.dtype, name=f"mlp_{index}")
            y = y + think(RMSNorm(name=f"mlp_norm_{index}")(y))
        out = Linear((text.states.shape[-1],), self.dtype, name="out")
        return out(RMSNorm(name="out_norm")(y[:, : self.tokens]))[0]


class InterfaceDiT(VideoDiT):
    """A VideoDiT of chunks with an `Interface` (VIN, arXiv:2503.17539).

    A video of a chunk or less is one chunk. Places are counted from the beginning of a chunk for
    its layers, and in the whole video for key frames. Tokens are read as the prompt is.

    Attributes:
        chunk: Latent frames of a chunk.
        overlap: Frames that neighbours share: what a chunk knows of the one before.
        tokens: Tokens of the interface, for any length; 0 is none: chunks share frames alone.
        blocks: Layers among tokens and prompt.
        stride: Latent frames from one key frame to the next.
        fused_above: Level above which neighbours share what they say of a frame, by weights that
            fall towards the end of a chunk; at this level and below, one says all.
    """

    chunk: int = 3
    overlap: int = 1
    tokens: int = 16
    blocks: int = 2
    stride: int = 2
    fused_above: float = 0.4
    reads_sections: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, x: Latents, call: Call, conditions: Conditions, carry: Carry | None = None
    ) -> tuple[Latents, Carry]:
        """Predicts the velocity `noise - clean` of every latent.

        Args:
            x: Noisy latents of the whole video.
            call: Noise level of each frame, 1 noise .. 0 clean, and the row of the run.
            conditions: The prompt.
            carry: What the previous call returned, at first `start(...)`; None for a single call.

        Returns:
            The prediction in float32, and the carry for the next call.

        Raises:
            ShapeError: If the latents do not divide into patches.
            ConfigError: If the model is built with other ports than text, or frames have prompts
                of their own.
        """
        text = conditions.text
        if self.ports != ("text",) or text is None or text.section is not None:
            what = f"chunks with an interface, of a model with the ports {', '.join(self.ports)}"
            why = "what ties them is one prompt and tokens beside it"
            raise ConfigError(what, why, 'use ports=("text",) and give one prompt')
        frames = self._frames(x.shape[1])
        count, size = frames.shape
        if self.tokens:
            z = self._interface(x, call.t, text)
            states = jnp.concatenate([z, text.states.astype(z.dtype)], 1)
            text = TextStates(states, text.lengths + self.tokens)
        states, lengths = (jnp.repeat(part, count, 0) for part in (text.states, text.lengths))
        text = TextStates(states, lengths)

        def cut(values: Array) -> Array:
            return values[:, frames].reshape(-1, size, *values.shape[2:])

        none = jnp.zeros((), jnp.int32)
        row = Row(call.row.index, none, jnp.zeros((size,), bool), none)
        inside = Call(cut(call.t), cut(call.t_next), row)
        out, carry = super().__call__(cut(x), inside, Conditions(text), carry)
        out = out.reshape(len(x), count, *out.shape[1:])
        shares = self._shares(call.t, frames)[..., None, None, None]
        return jnp.zeros(x.shape, out.dtype).at[:, frames].add(shares * out), carry

    def start(
        self,
        latent_frames: int,
        height: int,
        width: int,
        positions: Float[Array, " F"] | None = None,
        batch: int = 1,
    ) -> Carry:
        """Returns the carry before the first call; see `Transformer.start`."""
        count, size = self._frames(latent_frames).shape
        places = jnp.arange(size, dtype=jnp.float32)
        return super().start(size, height, width, places, batch * count)

    @property
    def _tiles(self) -> Tiles:
        return Tiles(self.chunk, self.overlap, fused_above=self.fused_above)

    def _frames(self, latent_frames: int) -> Int[np.ndarray, "chunks size"]:
        """Returns which latent frames each chunk has."""
        size = self._tiles.size(latent_frames, 1, 1)[0]
        return self._tiles.places(latent_frames, 1, 1)[:, :1] + np.arange(size)

    def _shares(
        self, t: NoiseLevels, frames: Int[np.ndarray, "chunks size"]
    ) -> Float[Array, "B chunks size"]:
        """Returns what a chunk says of its frames; the shares of a frame sum to 1."""
        tiles, whole = self._tiles, (t.shape[1], 1, 1)
        mixed, owned = (
            jnp.asarray(shares(*whole)[None, ..., 0, 0]) for shares in (tiles.shares, tiles.owned)
        )
        return tiles.at_level(t[:, frames], mixed, owned)

    def _interface(self, x: Latents, t: NoiseLevels, text: TextStates) -> Tokens:
        """Returns the tokens of a call."""
        keys = np.arange(0, x.shape[1], self.stride)
        sides = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        places = np.stack(np.meshgrid(keys, *map(np.arange, sides), indexing="ij"), -1)
        interface = Interface(
            self.tokens, self.width, self.blocks, self.head_dim, self.dtype, name="interface"
        )
        where: Any = jnp.asarray(places.reshape(len(keys), -1, 3), jnp.float32)
        return interface(self._patches(x[:, keys]), t[:, keys], where, text)
