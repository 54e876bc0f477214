"""A network of single frames that is shown earlier ones, and copies of them what did not change.

ART.V, Weng et al., arXiv:2311.18834. A frame is predicted from itself, the prompt, a few frames
before it and the first frame of the video, its anchor, which enter as channels; frames do not
attend to each other, so that a clip is a batch of frames. Besides the velocity the network says for
every cell how much of it is the frame before, and the velocity that would lead there is known.
"""

import typing
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Latents, NoiseLevels
from jvdm.errors import ConfigError
from jvdm.models.carry import Carry
from jvdm.models.conditions import Conditions, TextStates
from jvdm.models.video_dit import VideoDiT
from jvdm.samplers import Call, Row
from jvdm.samplers.process import expand

UNKNOWN = 1.0  # level of a frame that is not there: nothing of noise is known
LEAST_LEVEL = 0.1  # the velocity to the frame before is no steeper than at this level
MOST_COPIED = 0.5  # level from which on a frame is too noisy to be copied


class References(NamedTuple):
    """What each of `F` frames is shown of others.

    Attributes:
        latents: The frames, `R` for each.
        levels: Their noise levels; `UNKNOWN` where there is none.
        copied: The clean frame before each, which the mask copies.
    """

    latents: Float[Array, "B F R H W C"]
    levels: Float[Array, "B F R"]
    copied: Latents


@typing.no_type_check
@flax.struct.dataclass
class Anchored:
    """What is handed on: the carry of the layers, and the first frame of the video with its level.

    Attributes:
        layers: Carry of the network of single frames.
        anchor: The first frame as it was last seen, zeros before.
        level: Its level.
    """

    layers: Carry
    anchor: Float[Array, "B 1 H W C"]
    level: Float[Array, "B 1"]


class NextFrameDiT(VideoDiT):
    """Masked diffusion of single frames (ART.V, arXiv:2311.18834), on a rectified flow.

    The velocity is `m (x - z) / t + (1 - m) v` with the network's own `v` and its mask `m`, 0 to 1,
    of every cell; `z` is the frame before. Of clean data this is `m z + (1 - m) x0`. References
    are frames of the window and, for the anchor, what the carry keeps: rows show a frame in work
    behind the latest of `back` (`WindowedMatrix`). A frame that is told a level (`Stabilised`,
    which scales it by what is left of it) is copied as it was.

    Attributes:
        back: How many latent frames before itself a frame is shown others; the first is copied.
        anchored: Whether it is shown the first frame of the video too.
        masked: Whether it copies.
    """

    back: tuple[int, ...] = (1, 2)
    anchored: bool = True
    masked: bool = True

    @property
    def channels_out(self) -> int:
        """Numbers of a latent cell that come out: the velocity, and the mask."""
        return self.latent_channels + self.masked

    def __call__(
        self, x: Latents, call: Call, conditions: Conditions, carry: Anchored | None = None
    ) -> tuple[Latents, Anchored]:
        """Predicts the velocity `noise - clean` of every latent, from frames of the same window.

        Args:
            x: Noisy latents.
            call: Noise level of each frame, 1 noise .. 0 clean, and the row of the run.
            conditions: The prompt.
            carry: What the previous call returned, at first `start(...)`; None for a single call.

        Returns:
            The prediction in float32, and the carry for the next call.

        Raises:
            ShapeError: If the latents do not divide into patches.
            ConfigError: If a condition has no port in this model, or it is built with another.
        """
        batch, frames, height, width, _ = x.shape
        carry = carry or self.start(frames, height, width, batch=batch)
        assert carry is not None
        first = call.row.frame == 0
        anchor = jnp.where(first, x[:, :1].astype(jnp.float32), carry.anchor)
        level = jnp.where(first, call.t[:, :1], carry.level)
        references = self.references(x, call.t, anchor, level, call.row.frame)
        velocity, layers = self.beside(x, call, conditions, references, carry.layers)
        return velocity, Anchored(layers, anchor, level)

    def start(
        self,
        latent_frames: int,
        height: int,
        width: int,
        positions: Float[Array, " F"] | None = None,
        batch: int = 1,
    ) -> Any:
        """Returns the carry before the first call; see `Transformer.start`."""
        alone = super().start(1, height, width, jnp.zeros(1), batch * latent_frames)
        anchor = jnp.zeros((batch, 1, height, width, self.latent_channels), jnp.float32)
        return Anchored(alone, anchor, jnp.full((batch, 1), UNKNOWN))

    def references(
        self,
        x: Latents,
        t: NoiseLevels,
        anchor: Float[Array, "B 1 H W C"],
        level: Float[Array, "B 1"],
        frame: Array | int = 0,
    ) -> References:
        """Returns what each frame of a window is shown.

        Args:
            x: Latents of the window, the references among them.
            t: Their levels.
            anchor: First frame of the video.
            level: Its level.
            frame: Index of the first frame of the window in the video.
        """
        shown = [(_earlier(x, back, 0.0), _earlier(t, back, UNKNOWN)) for back in self.back]
        if self.anchored:
            later = frame + jnp.arange(t.shape[1]) > 0
            known = jnp.where(later[None], level, UNKNOWN)
            shown.append((jnp.where(expand(known < UNKNOWN, x), anchor, 0.0), known))
        latents, levels = (jnp.stack(parts, 2) for parts in zip(*shown, strict=True))
        left = 1.0 - jnp.minimum(levels[:, :, 0], MOST_COPIED)
        return References(latents, levels, latents[:, :, 0] / expand(left, x))

    def beside(
        self,
        x: Latents,
        call: Call,
        conditions: Conditions,
        references: References,
        carry: Carry | None = None,
    ) -> tuple[Latents, Carry]:
        """Predicts the velocity of frames beside references that are given.

        Args:
            x: Noisy latents.
            call: The call.
            conditions: The prompt.
            references: What each frame is shown.
            carry: Carry of the layers; None for a single call.
        """
        if set(self.ports) - {"text"}:
            what = f"a network of single frames with the ports {', '.join(self.ports)}"
            raise ConfigError(what, "it is told prompts and earlier frames", 'use ports=("text",)')
        batch, frames = x.shape[:2]
        planes = jnp.broadcast_to(
            references.levels[:, :, None, None], (*x.shape[:4], references.levels.shape[2])
        )
        beside = jnp.moveaxis(references.latents, 2, 4).reshape(*x.shape[:4], -1)
        seen = jnp.concatenate([x, beside.astype(x.dtype), planes.astype(x.dtype)], -1)

        alone = seen.reshape(-1, 1, *seen.shape[2:])
        levels, to = (level.reshape(-1, 1) for level in (call.t, call.t_next))
        none = jnp.zeros((), jnp.int32)
        row = Row(call.row.index, none, jnp.zeros((1,), bool), none)
        text = _of_frames(conditions.text, call.row.frame, frames)
        told = Call(levels, to, row)
        out, carry = super().__call__(alone, told, Conditions(text), carry)
        out = out.reshape(batch, frames, *out.shape[2:])
        if not self.masked:
            return out, carry
        velocity, mask = out[..., :-1], jax.nn.sigmoid(out[..., -1:])
        mask = mask * expand(references.levels[:, :, 0] < MOST_COPIED, x)
        steps = expand(jnp.maximum(call.t, LEAST_LEVEL), x)
        return (1 - mask) * velocity + mask * (x - references.copied) / steps, carry


def _earlier(values: Array, back: int, missing: float) -> Array:
    """Returns for every frame, on axis 1, the one that is `back` before it."""
    back = min(back, values.shape[1])
    edge = jnp.full_like(values[:, :back], missing)
    return jnp.concatenate([edge, values[:, : values.shape[1] - back]], 1)


def _of_frames(text: TextStates | None, frame: Array, frames: int) -> TextStates | None:
    """Returns the prompts of `frames` frames from `frame` on, one after the other."""
    if text is None:
        return None
    text = text.seen(frame, frames, text.states)
    section = None if text.section is None else text.section.reshape(-1, 1)
    states, lengths = (jnp.repeat(part, frames, 0) for part in (text.states, text.lengths))
    return TextStates(states, lengths, section, text.sections)
