"""The trained reader: from nine small frames to what the caption should say.

Objects are told apart by colour, so the network gathers its features under each palette
colour's mask and reads every colour with the same small head: seven times the examples,
and an object's answer does not depend on how many others there are.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Frames, Int
from jvdm.features import fold
from jvdm.models.layers import RMSNorm
from jvdm.world.palette import classify
from jvdm.world.scene import CAMERAS, COLORS, SHAPES, SIZES, SPEEDS, VERBS, Facts

NUM_FRAMES, RESOLUTION = 9, 64
"""Frames that the reader sees, evenly spaced over the clip, and their height and width."""

_ANSWERS = {"shape": len(SHAPES), "size": len(SIZES), "verb": len(VERBS), "speed": len(SPEEDS)}


class Reading(NamedTuple):
    """Logits of a batch of clips; `K` counts the palette `COLORS`.

    `features` describe the clip for the Frechet distance.
    """

    present: Float[Array, "B K"]
    shape: Float[Array, "B K shapes"]
    size: Float[Array, "B K sizes"]
    verb: Float[Array, "B K verbs"]
    speed: Float[Array, "B K speeds"]
    camera: Float[Array, "B cameras"]
    features: Float[Array, "B D"]


class Reader(nn.Module):
    """Convolutional network over frames, their differences and their positions."""

    widths: tuple[int, int] = (48, 128)  # at a half and at a quarter of the resolution
    blocks: int = 2  # with temporal mixing, at a quarter of the resolution
    hidden: int = 256  # width of the object head; twice the global features
    dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, frames: Frames) -> Reading:
        """Reads clips of `NUM_FRAMES` frames of 64 x 64 pixels in 0..1; see `shrink`."""
        label = classify(frames)
        x = fold(_inputs(frames.astype(self.dtype)), 2)
        x = self._conv(self.widths[0])(x)
        x = x + self._conv(self.widths[0])(nn.silu(RMSNorm()(x)))
        x = self._dense(self.widths[1])(fold(nn.silu(x), 2))
        for _ in range(self.blocks):
            x = _Block(self.dtype)(x)
        scene = nn.silu(nn.Dense(self.hidden // 2)(self._overview(x)))
        camera = nn.Dense(len(CAMERAS), name="camera")(scene)
        objects = self._objects(x, label, scene)
        present = nn.Dense(1, name="present")(objects)[..., 0]
        answers = {name: nn.Dense(size, name=name)(objects) for name, size in _ANSWERS.items()}
        shown = jax.nn.sigmoid(present)[..., None] * objects[..., : self.hidden // 2]
        features = jnp.concatenate([scene, shown.sum(1)], -1)
        return Reading(present=present, camera=camera, features=features, **answers)

    def _overview(self, x):
        """What happens everywhere: `[B, frames * 32]`."""
        x = _Block(self.dtype)(self._dense(self.widths[1])(fold(x, 2)))
        batch, length, height, width, channels = x.shape
        coarse = x.reshape(batch, length, 4, height // 4, 4, width // 4, channels).mean((3, 5))
        each = self._dense(32)(coarse.reshape(batch, length, -1))
        return nn.silu(each.astype(jnp.float32)).reshape(batch, -1)

    def _objects(self, x, label, scene):
        """Hidden features `[B, K, hidden]` of each colour."""
        batch, length, cells = x.shape[:3]
        mask = jax.nn.one_hot(label, len(COLORS), dtype=jnp.float32)
        place = _moments(mask)
        size = RESOLUTION // cells
        coarse = mask.reshape(batch, length, cells, size, cells, size, -1).mean((3, 5))
        share = coarse / (coarse.sum((2, 3), keepdims=True) + 1e-2)
        look = jnp.einsum("bthwk,bthwc->btkc", share.astype(x.dtype), nn.silu(RMSNorm()(x)))
        look = self._dense(64)(look).astype(jnp.float32)
        story = jnp.concatenate([look, place], -1).transpose(0, 2, 1, 3)
        story = story.reshape(batch, len(COLORS), -1)
        context = jnp.broadcast_to(scene[:, None], (batch, len(COLORS), scene.shape[-1]))
        hidden = nn.silu(nn.Dense(self.hidden)(jnp.concatenate([story, context], -1)))
        return hidden + nn.silu(nn.Dense(self.hidden)(RMSNorm()(hidden)))

    def _conv(self, features):
        return nn.Conv(features, (3, 3), dtype=self.dtype)

    def _dense(self, features):
        return nn.Dense(features, dtype=self.dtype)


class _Block(nn.Module):
    """Residual block: a convolution of each frame, then a mix of three frames."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        channels = x.shape[-1]
        y = nn.Conv(channels, (3, 3), dtype=self.dtype)(nn.silu(RMSNorm()(x)))
        y = nn.silu(RMSNorm()(y))
        before = jnp.concatenate([y[:, :1], y[:, :-1]], 1)
        after = jnp.concatenate([y[:, 1:], y[:, -1:]], 1)
        mixed = jnp.concatenate([before, y, after], -1)
        return x + nn.Dense(channels, dtype=self.dtype)(mixed)


def shrink(frames: Frames) -> Float[Array, "B 9 64 64 3"]:
    """Picks nine frames, evenly spaced, and averages them to 64 x 64 pixels."""
    length, height, width = frames.shape[1:4]
    picks = [round(i * (length - 1) / (NUM_FRAMES - 1)) for i in range(NUM_FRAMES)]
    frames = frames[:, jnp.array(picks)] if picks != list(range(length)) else frames
    if height == width and height % RESOLUTION == 0:
        size = height // RESOLUTION
        split = (frames.shape[0], NUM_FRAMES, RESOLUTION, size, RESOLUTION, size, 3)
        return frames.reshape(split).mean((3, 5))
    target = (frames.shape[0], NUM_FRAMES, RESOLUTION, RESOLUTION, 3)
    return jax.image.resize(frames, target, "linear")


def answers_for(values: Float[Array, "B K N"], color: Int[Array, "B S"]) -> Float[Array, "B S N"]:
    """Takes the entries of the colours that object slots have."""
    return jnp.take_along_axis(values, color[..., None], axis=1)


def attributes_right(reading: Reading, facts: Facts) -> dict[str, tuple[Array, Array]]:
    """Compares a reading with what was said, object by object.

    Returns:
        Right and counted, both bool, of `colors` and `camera` `[B]`, and of `shape`,
        `size`, `verb`, `speed` `[B, S]` (active slots; speeds that captions tell).
    """
    whole = jnp.ones(facts.camera.shape, bool)
    seen = reading.present > 0
    right = {
        "colors": ((seen == (present_colors(facts) > 0)).all(-1), whole),
        "camera": (reading.camera.argmax(-1) == facts.camera, whole),
    }
    for name in ("shape", "size", "verb", "speed"):
        logits = answers_for(getattr(reading, name), facts.color)
        right[name] = (logits.argmax(-1) == getattr(facts, name), facts.active)
    told = (facts.verb != VERBS.index("rests")) & (facts.verb != VERBS.index("drops"))
    right["speed"] = (right["speed"][0], facts.active & told & (facts.speed > 0))
    return right


def describe(reading: Reading) -> str:
    """Says in words what was read of one clip (arrays without a batch axis)."""
    parts = []
    for index in np.flatnonzero(np.asarray(reading.present) > 0):
        words = [
            SIZES[int(reading.size[index].argmax())],
            COLORS[index],
            SHAPES[int(reading.shape[index].argmax())],
            VERBS[int(reading.verb[index].argmax())],
        ]
        parts.append(" ".join(words))
    return "; ".join([*parts, CAMERAS[int(np.asarray(reading.camera).argmax())]])


def present_colors(facts: Facts) -> Float[Array, "B K"]:
    """Returns 1 for each palette colour that an active slot has, else 0."""
    return (jax.nn.one_hot(facts.color, len(COLORS)) * facts.active[..., None]).sum(1)


def _inputs(frames: Frames) -> Array:
    """Colour, change since the last frame, and position of every pixel."""
    change = jnp.concatenate([jnp.zeros_like(frames[:, :1]), frames[:, 1:] - frames[:, :-1]], 1)
    line = jnp.linspace(-1.0, 1.0, frames.shape[2]).astype(frames.dtype)
    shape = (*frames.shape[:4], 1)
    row = jnp.broadcast_to(line[None, None, :, None, None], shape)
    column = jnp.broadcast_to(line[None, None, None, :, None], shape)
    return jnp.concatenate([2.0 * frames - 1.0, 4.0 * change, row, column], -1)


def _moments(mask: Float[Array, "B T H W K"]) -> Float[Array, "B T K 6"]:
    """Whether, how large, where and how wide each mask is, in numbers of order 1."""
    rows, columns = mask.mean(3), mask.mean(2)
    line = jnp.linspace(-1.0, 1.0, mask.shape[2])[None, None, :, None]
    area = rows.mean(2)
    parts = [jnp.tanh(area * 500.0), 4.0 * jnp.sqrt(area)]
    for profile in (rows, columns):
        weight = profile / (profile.sum(2, keepdims=True) + 1e-4)
        mean = (weight * line).sum(2)
        spread = (weight * (line - mean[:, :, None]) ** 2).sum(2)
        parts += [2.0 * mean, 4.0 * jnp.sqrt(spread + 1e-6)]
    return jnp.stack(parts, -1)
