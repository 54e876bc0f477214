"""A video model that follows a plan: codes of what comes, foretold by a language model.

ARLON, Li et al., arXiv:2410.20502. A small decoder foretells the codes of every latent frame from
the prompt and the codes before (`code_guide`), what they say of the latents (`latent_codes`) enters
through the `plan` port, and the network fills in the rest. Denoising in windows may forget what is
behind them; the plan goes on from its own past.
"""

import dataclasses
import functools
import typing
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Key, Latents, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.models.carry import Carry
from jvdm.models.code_guide import CodeGuide, Ring, counted
from jvdm.models.conditions import Conditions, PlanCondition, TextStates
from jvdm.models.latent_codes import Coded, LatentCodes
from jvdm.models.video_dit import VideoDiT
from jvdm.samplers import Call
from jvdm.samplers.process import expand

KNOWN = 0.25  # highest level of a frame whose codes are read from it, and not foretold


@typing.no_type_check
@flax.struct.dataclass
class Planned:
    """What is handed on: the carry of the layers, and the plan.

    Attributes:
        layers: Carry of the layers.
        codes: Codes of the last frames that were planned, `[B, W, P]`; frame `f` is at `f % W`.
        last: The last code, `[B]`.
        ring: What the language model keeps.
    """

    layers: Carry
    codes: Int[Array, "B W P"]
    last: Int[Array, " B"]
    ring: Ring


class PlannedDiT(VideoDiT):
    """A VideoDiT that foretells codes of its frames and follows them (ARLON, arXiv:2410.20502).

    A frame is planned when a call first sees it: one of a level up to `KNOWN` is read, others are
    drawn. Draws are those of a key that is made of the noise of the frame, so that equal noise has
    an equal plan, on any devices and in all branches of guidance; the plan follows the prompt that
    these say together (`Conditions.outline`).

    Attributes:
        ports: Prompts, plan, and the prompts that it is made from.
        codes: Codes of the table.
        cells: Latent cells along the side of a square that is a code.
        memory: Frames whose codes the language model sees, the one that it foretells among them.
        guide_depth: Its layers; it is as wide as the network.
        temperature: Of the draws; 0 takes the likeliest code. At .25 things stay nearer to where
            they belong than at 1, .5 and 0 (`configs/systems/arlon.py`).
        follows: Whether there is a plan; without, the parameters are the same.
    """

    ports: tuple[str, ...] = ("text", "plan", "outline")
    codes: int = 256
    cells: int = 2
    memory: int = 8
    guide_depth: int = 2
    temperature: float = 0.25
    follows: bool = True
    reads_sections: ClassVar[bool] = False

    def setup(self) -> None:
        """Makes codes and language model."""
        if set(self.ports) - {"text", "plan", "outline"} or "plan" not in self.ports:
            what = f"a model that plans with the ports {', '.join(self.ports)}"
            why = "its plan is made from prompts alone"
            raise ConfigError(what, why, 'use ports=("text", "plan", "outline")')
        sizes = {"cells": self.cells, "width": self.width, "dtype": self.dtype}
        self.coder = LatentCodes(self.latent_channels, self.codes, **sizes)
        self.guide = CodeGuide(**self._guided())

    def __call__(
        self, x: Latents, call: Call, conditions: Conditions, carry: Planned | None = None
    ) -> tuple[Latents, Planned]:
        """Predicts the velocity `noise - clean` of every latent, along the plan.

        Args:
            x: Noisy latents.
            call: Noise level of each frame, 1 noise .. 0 clean, and the row of the run.
            conditions: The prompt, and that of the plan; the same where there is none.
            carry: What the previous call returned, at first `start(...)`; None for a single call.

        Returns:
            The prediction in float32, and the carry for the next call.

        Raises:
            ShapeError: If the latents do not divide into patches.
            ConfigError: If a condition has no port in this model, or squares do not divide frames.
        """
        batch, frames, height, width, _ = x.shape
        carry = carry or self.start(frames, height, width, batch=batch)
        assert carry is not None
        if self.is_initializing():
            assert conditions.text is not None
            coded = self.coder(x)
            self.guide(coded.codes, width // self.cells, conditions.text)
        elif self.follows:
            carry = self._foretold(x, call, conditions.outline or conditions.text, carry)
        places = (call.row.frame + jnp.arange(frames)) % carry.codes.shape[1]
        rough = self.coder.decode(carry.codes[:, places], height, width)
        plan = PlanCondition(rough, jnp.full(batch, self.follows))
        velocity, layers = self.along(x, call, Conditions(conditions.text, plan=plan), carry.layers)
        return velocity, dataclasses.replace(carry, layers=layers)

    def along(
        self, x: Latents, call: Call, conditions: Conditions, carry: Carry | None = None
    ) -> tuple[Latents, Carry]:
        """Predicts the velocity along a plan that is given; else as a call."""
        return super().__call__(x, call, conditions, carry)

    def coded(self, latents: Latents) -> Coded:
        """Returns codes of clean latents, as training sees them."""
        return self.coder(latents)

    def foretold(
        self, codes: Int[Array, "B F P"], columns: int, text: TextStates
    ) -> Float[Array, "B F P codes"]:
        """Returns what is foretold of the codes of clips, as training sees it; logits.

        Args:
            codes: The codes.
            columns: Squares of a row of a frame.
            text: The prompts.
        """
        return self.guide(codes, columns, text)

    def start(
        self,
        latent_frames: int,
        height: int,
        width: int,
        positions: Float[Array, " F"] | None = None,
        batch: int = 1,
    ) -> Any:
        """Returns the carry before the first call; see `Transformer.start`."""
        if height % self.cells or width % self.cells:
            what = f"latents of {height} x {width} cells"
            why = f"a code is a square of {self.cells} x {self.cells}"
            raise ConfigError(what, why, "choose a height and a width that squares divide")
        layers = super().start(latent_frames, height, width, positions, batch)
        squares = height * width // self.cells**2
        codes = jnp.zeros((batch, latent_frames, squares), jnp.int32)
        guide = CodeGuide(**self._guided(), parent=None)
        return Planned(layers, codes, jnp.full(batch, self.codes), guide.start(batch, squares))

    def drawn(
        self, frame: Latents, codes: Int[Array, "B P"], square: Array, logits: Array
    ) -> Int[Array, " B"]:
        """Returns the next code of each film.

        Args:
            frame: The frame as noise.
            codes: Its codes so far.
            square: Which square is next.
            logits: What is foretold.
        """
        if self.temperature == 0:
            return jnp.argmax(logits, -1)

        def draw(key: Key, logits: Array) -> Array:
            key = jax.random.fold_in(named(key, "codes"), square)
            return jax.random.categorical(key, logits / self.temperature)

        return jax.vmap(draw)(_keys(frame), logits)

    def _guided(self) -> dict[str, Any]:
        """Returns the fields of the language model."""
        names = ("codes", "width", "head_dim", "dtype")
        more = {"frames": self.memory, "depth": self.guide_depth, "axes": self.rotary_axes}
        return {name: getattr(self, name) for name in names} | more

    def _foretold(self, x: Latents, call: Call, text: TextStates | None, carry: Planned) -> Planned:
        """Returns the carry with the codes of all frames that this call sees."""
        if text is None or text.section is not None:
            what, why = "a plan of a video without one prompt", "frames are foretold from a prompt"
            raise ConfigError(what, why, "give one prompt")
        squares, frame, end = carry.codes.shape[2], call.row.frame, call.row.frame + x.shape[1]
        guide, coder = self.guide.clone(parent=None), self.coder.clone(parent=None)
        guided = functools.partial(guide.apply, self.guide.variables, method="step")
        coded: Any = functools.partial(coder.apply, self.coder.variables, method="encode")
        told = (squares, x.shape[3] // self.cells, self.guide.read(text), counted(text))

        def lacks(carry: Planned) -> Array:
            return carry.ring.made < end * squares

        def plan(carry: Planned) -> Planned:
            now = carry.ring.made // squares
            seen = jax.lax.dynamic_slice_in_dim(x, now - frame, 1, 1)
            level = jax.lax.dynamic_slice_in_dim(call.t, now - frame, 1, 1)
            is_known = level[:, 0] < KNOWN
            clean = seen / expand(1.0 - jnp.minimum(level, KNOWN), seen)
            known = coded(clean)[:, 0]

            def one(square: Array, state: PyTree) -> PyTree:
                codes, last, ring = state
                logits, ring = guided(last, ring, *told)
                drawn = self.drawn(seen, codes, square, logits)
                code = jnp.where(is_known, known[:, square], drawn)
                return codes.at[:, square].set(code), code, ring

            first = (jnp.zeros_like(known), carry.last, carry.ring)
            codes, last, ring = jax.lax.fori_loop(0, squares, one, first)
            codes = carry.codes.at[:, now % carry.codes.shape[1]].set(codes)
            return dataclasses.replace(carry, codes=codes, last=last, ring=ring)

        anew = carry.ring.made < frame * squares  # no frame before this one was seen
        ring = carry.ring
        made = jnp.where(anew, frame * squares, ring.made)
        ring = ring._replace(made=made, first=jnp.where(anew, made, ring.first))
        last = jnp.where(anew, self.codes, carry.last)
        return jax.lax.while_loop(lacks, plan, dataclasses.replace(carry, last=last, ring=ring))


def _keys(frame: Float[Array, "B 1 H W C"]) -> Array:
    """Returns a key for each film, of all bits of its frame."""
    bits = jax.lax.bitcast_convert_type(frame.astype(jnp.float32), jnp.uint32)
    words = jax.lax.reduce(bits.reshape(len(frame), -1), jnp.uint32(0), jnp.bitwise_xor, (1,))
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), words)
