"""A model family that exists only in these tests: nothing of it is known to the product.

Patches of one cell, strides 8 x 4 x 4, four latent channels, prompts as bytes, a network that
predicts `v` on a variance preserving process.
"""

import dataclasses
import typing
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import Array
from jvdm.attention import Dense, Policy
from jvdm.errors import ShapeError
from jvdm.samplers import DDIM, ClassifierFree, ShiftedLevels, vp_cosine
from jvdm.system import Sampling, System


class ByteEncoder(nn.Module):
    """Embeds the bytes of a prompt."""

    length: int = 24
    width: int = 8
    dtype: str = "float32"

    def read(self, prompts):
        ids = np.zeros((len(prompts), self.length), np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            text = np.frombuffer(prompt.encode()[: self.length], np.uint8)
            row[: len(text)] = text.astype(np.int32) + 1
        return ids, ()

    @nn.compact
    def __call__(self, ids):
        states = nn.Embed(257, self.width, name="bytes")(ids)
        return states.astype(self.dtype), jnp.maximum(jnp.sum(ids != 0, -1), 1)


class Mixer(nn.Module):
    """Mixes channels of every cell with the level of its frame and the sum of the prompt."""

    latent_channels: int = 4
    width: int = 32
    ports: tuple[str, ...] = ("text",)
    policy: Policy = Dense()
    patch: int = 1
    dtype: str = "float32"

    def start(self, latent_frames, height, width, positions=None, batch=1):
        return None

    @nn.compact
    def __call__(self, x, call, conditions, carry=None):
        states, lengths = conditions.text.states, conditions.text.lengths
        counts = jnp.arange(states.shape[1])[None] < lengths[:, None]
        told = jnp.sum(states * counts[..., None], 1) / states.shape[1]
        told = nn.Dense(self.width, name="told")(told)[:, None, None, None]
        level = nn.Dense(self.width, name="level")(call.t[..., None])[:, :, None, None]
        hidden = nn.silu(nn.Dense(self.width, name="into")(x) + told + level)
        return nn.Dense(self.latent_channels, name="out")(hidden), carry


class Posterior(typing.NamedTuple):
    mean: Any


class BlockVAE(nn.Module):
    """Blocks of 8 x 4 x 4 pixels, the first frame alone, to four numbers and back."""

    latent_channels: int = 4
    dtype: str = "float32"
    strides: ClassVar[tuple[int, int, int]] = (8, 4, 4)

    def setup(self):
        self.down, self.up = nn.Dense(self.latent_channels), nn.Dense(4 * 4 * 3)

    def latent_frames(self, num_frames):
        if num_frames < 1 or (num_frames - 1) % 8:
            raise ShapeError(f"num_frames is {num_frames}", "it must be 8n + 1")
        return 1 + (num_frames - 1) // 8

    def num_frames(self, latent_frames):
        return 1 + 8 * (latent_frames - 1)

    def latent_size(self, height, width):
        return height // 4, width // 4

    def encode(self, frames):
        first, rest = frames[:, :1], frames[:, 1:]
        b, t, h, w, c = rest.shape
        rest = rest.reshape(b, t // 8, 8, h, w, c).mean(2)
        x = jnp.concatenate([first, rest], 1)
        x = x.reshape(b, -1, h // 4, 4, w // 4, 4, c).transpose(0, 1, 2, 4, 3, 5, 6)
        return Posterior(self.down(x.reshape(b, -1, h // 4, w // 4, 48)))

    def decode(self, latents):
        b, f, h, w, _ = latents.shape
        x = self.up(latents).reshape(b, f, h, w, 4, 4, 3).transpose(0, 1, 2, 4, 3, 5, 6)
        x = x.reshape(b, f, 4 * h, 4 * w, 3)
        return jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], 8, 1)], 1)

    def __call__(self, frames):
        return self.decode(self.encode(frames).mean)


SYSTEM = System(
    text=ByteEncoder(),
    model=Mixer(),
    vae=BlockVAE(),
    process=vp_cosine(),
    prediction="v",
    sampling=Sampling(ShiftedLevels(4, 1.0), solver=DDIM(), guidance=ClassifierFree(1.5)),
)


@typing.no_type_check
@flax.struct.dataclass
class Nothing:
    """A source without a state still says where batches lie."""

    mesh: Mesh = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Bands:
    """Source of latents whose value is the length of their prompt."""

    def start(self, position: int, saved: bytes | None, mesh: Mesh) -> Nothing:
        return Nothing(mesh)

    def feed(self, data: Nothing) -> Nothing:
        return data

    def saved(self, data: Nothing) -> bytes:
        return b""

    def draw(self, data: Nothing, step: Array, batch_size: int):
        key = jax.random.fold_in(jax.random.key(0), step)
        lengths = jax.random.randint(key, (batch_size,), 1, 24)
        tokens = jnp.where(jnp.arange(24)[None] < lengths[:, None], 98, 0)
        value = (lengths / 12.0 - 1.0)[:, None, None, None, None]
        latents = jnp.broadcast_to(value, (batch_size, 2, 4, 8, 4))
        return {"latents": latents, "tokens": tokens}, data
