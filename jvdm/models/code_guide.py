"""A language model of codes: the next one from those before it and the prompt.

A decoder over the codes of latent frames in raster order (ARLON, arXiv:2410.20502). Every code
attends to the codes of the last `frames` frames, the same in training, where all are foretold at
once, and in sampling, where keys and values of a ring are kept: films have no end.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int
from jvdm.features import sinusoids
from jvdm.models.conditions import TextStates
from jvdm.models.layers import FeedForward, Linear, RMSNorm, Rotary, rotate

_WAVES = 8  # frequencies of row and column of a square
_BASE = 100.0  # ratio of wavelengths of a head's turns, as the video model's

Read = tuple[Float[Array, "B L N E"], Float[Array, "B L N E"]]
"""Keys and values of a prompt, for one layer."""


class Ring(NamedTuple):
    """Keys and values of the last codes, one pair for each layer, and which they are.

    Attributes:
        keys: Of slot `i % size` is code `i`.
        values: Likewise.
        made: Codes that were read, all told.
        first: The first code that is in the ring, or was.
    """

    keys: tuple[Float[Array, "B S N E"], ...]
    values: tuple[Float[Array, "B S N E"], ...]
    made: Int[Array, ""]
    first: Int[Array, ""]


class GuideLayer(nn.Module):
    """Attention to earlier codes, to the prompt, feed-forward."""

    width: int
    head_dim: int
    dtype: str

    def setup(self) -> None:
        """Makes the parts."""
        one, two, three = ((self.width,) * count for count in (1, 2, 3))
        self.mix_norm, self.qkv = RMSNorm(), Linear(three, self.dtype)
        self.q_norm, self.k_norm = RMSNorm(), RMSNorm()
        self.mix_out = Linear(one, self.dtype, scale=0.3)
        self.read_norm, self.read_q = RMSNorm(), Linear(one, self.dtype)
        self.read_kv, self.read_k_norm = Linear(two, self.dtype), RMSNorm()
        self.read_q_norm = RMSNorm()
        self.read_out = Linear(one, self.dtype, scale=0.3)
        self.think_norm, self.think = RMSNorm(), FeedForward(dtype=self.dtype)

    def read(self, states: Float[Array, "B L _"]) -> Read:
        """Returns keys and values of the states of a prompt."""
        k, v = (self._heads(part) for part in self.read_kv(states))
        return self.read_k_norm(k), v

    def asked(self, x: Float[Array, "B T D"], table: Rotary) -> tuple[Array, Array, Array]:
        """Returns queries, keys and values of codes, turned to their places."""
        q, k, v = (self._heads(part) for part in self.qkv(self.mix_norm(x)))
        return rotate(self.q_norm(q), table), rotate(self.k_norm(k), table), v

    def __call__(
        self,
        x: Float[Array, "B T D"],
        asked: tuple[Array, Array, Array],
        seen: Bool[Array, "T S"],
        read: Read,
        counts: Bool[Array, "B L"],
    ) -> Float[Array, "B T D"]:
        """Returns the features of codes after the layer.

        Args:
            x: Features before.
            asked: Their queries; keys and values of the codes that they may see.
            seen: Which of these each does.
            read: Keys and values of the prompt.
            counts: Which of its states count.
        """
        y = _attended(*asked, seen[None, None])
        x = x + self.mix_out(y.reshape(x.shape))[0]
        q = self.read_q_norm(self._heads(self.read_q(self.read_norm(x))[0]))
        y = _attended(q, *read, counts[:, None, None])
        x = x + self.read_out(y.reshape(x.shape))[0]
        return x + self.think(self.think_norm(x))

    def _heads(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N E"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


class CodeGuide(nn.Module):
    """Foretells codes; its places are frame, row and column of a square.

    Attributes:
        codes: How many codes there are.
        frames: Frames whose codes each code attends to, its own among them.
        width: Features.
        depth: Layers.
        head_dim: Features of a head.
        axes: Features of a head that turn with frame, row and column.
        dtype: Number type of products.
    """

    codes: int
    frames: int = 8
    width: int = 96
    depth: int = 2
    head_dim: int = 32
    axes: tuple[int, int, int] = (8, 12, 12)
    dtype: str = "bfloat16"

    def setup(self) -> None:
        """Makes the layers and what is before and after them."""
        self.words = nn.Embed(self.codes + 1, self.width)  # the last one is before the first code
        self.place_in = Linear((self.width,), self.dtype)
        self.text_in = Linear((self.width,), self.dtype)
        layer = (self.width, self.head_dim, self.dtype)
        self.layers = [GuideLayer(*layer) for _ in range(self.depth)]
        self.out_norm, self.out = RMSNorm(), Linear((self.codes,), self.dtype, scale=0.1)

    def __call__(
        self, codes: Int[Array, "B F P"], side: int, text: TextStates
    ) -> Float[Array, "B F P codes"]:
        """Returns what is foretold of every code from those before it, as logits.

        Args:
            codes: Codes of whole clips.
            side: Squares of a row of a frame.
            text: The prompts.
        """
        batch, frames, squares = codes.shape
        flat, index = codes.reshape(batch, -1), jnp.arange(frames * squares)
        before = jnp.concatenate([jnp.full_like(flat[:, :1], self.codes), flat[:, :-1]], 1)
        away = index[:, None] - index[None]
        seen = (away >= 0) & (away < self.frames * squares)
        x, table = self._embedded(before, index, squares, side)
        for layer, read in zip(self.layers, self.read(text), strict=True):
            x = layer(x, layer.asked(x, table), seen, read, counted(text))
        return self._logits(x).reshape(*codes.shape, -1)

    def read(self, text: TextStates) -> tuple[Read, ...]:
        """Returns what the layers read of prompts, once for all codes."""
        (states,) = self.text_in(text.states)
        return tuple(layer.read(states) for layer in self.layers)

    def start(self, batch: int, squares: int) -> Ring:
        """Returns an empty ring for films of frames of so many squares."""
        shape = (batch, self.frames * squares, self.width // self.head_dim, self.head_dim)
        empty = tuple(jnp.zeros(shape, jnp.float32) for _ in range(self.depth))
        none = jnp.zeros((), jnp.int32)
        return Ring(empty, empty, none, none)

    def step(
        self,
        before: Int[Array, " B"],
        ring: Ring,
        squares: int,
        side: int,
        reads: tuple[Read, ...],
        counts: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B codes"], Ring]:
        """Returns what is foretold of code `ring.made`, as logits, and the ring with it.

        Args:
            before: The code before it; `codes` where there is none.
            ring: What earlier codes left.
            squares: Squares of a frame.
            side: Squares of a row of a frame.
            reads: What `read` returned.
            counts: Which states of the prompts count.
        """
        size = self.frames * squares
        index, slot = ring.made, ring.made % size
        x, table = self._embedded(before[:, None], index[None], squares, side)
        age = (slot - jnp.arange(size)) % size
        seen = (index - age >= ring.first)[None]
        kept = []
        for layer, read, keys, values in zip(self.layers, reads, *ring[:2], strict=True):
            q, k, v = layer.asked(x, table)
            keys = jax.lax.dynamic_update_slice_in_dim(keys, k.astype(keys.dtype), slot, 1)
            values = jax.lax.dynamic_update_slice_in_dim(values, v.astype(values.dtype), slot, 1)
            x = layer(x, (q, keys, values), seen, read, counts)
            kept.append((keys, values))
        keys, values = zip(*kept, strict=True)
        return self._logits(x)[:, 0], Ring(keys, values, index + 1, ring.first)

    def _embedded(
        self, before: Int[Array, "B T"], index: Int[Array, " T"], squares: int, side: int
    ) -> tuple[Float[Array, "B T D"], Rotary]:
        """Returns features of codes to foretell, and the turns of their places."""
        place = index % squares
        cells = jnp.stack([place // side, place % side], -1).astype(jnp.float32)
        waves = sinusoids(cells, _WAVES).reshape(len(index), -1)
        x = self.words(before).astype(self.dtype) + self.place_in(waves)[0][None]
        places = ((index // squares).astype(jnp.float32), *cells.T)
        angles = [_angles(place, size) for place, size in zip(places, self.axes, strict=True)]
        angles = jnp.concatenate(angles, -1)
        return x, Rotary((jnp.cos(angles), jnp.sin(angles)))

    def _logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T codes"]:
        return self.out(self.out_norm(x))[0].astype(jnp.float32)


def counted(text: TextStates) -> Bool[Array, "B L"]:
    """Returns which states of prompts count."""
    return jnp.arange(text.states.shape[1])[None] < text.lengths[:, None]


def _angles(place: Float[Array, " T"], features: int) -> Float[Array, "T half"]:
    half = features // 2
    return place[:, None] * (_BASE ** (-jnp.arange(half) / half))[None]


def _attended(
    q: Float[Array, "B T N E"],
    k: Float[Array, "B S N E"],
    v: Float[Array, "B S N E"],
    seen: Bool[Array, "#B 1 #T S"],
) -> Float[Array, "B T N E"]:
    """Returns attended values in the type of the values; weights are float32."""
    scores = jnp.einsum("btne,bsne->bnts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, scores / math.sqrt(q.shape[-1]), -jnp.inf)
    weights = nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bnts,bsne->btne", weights, v)
