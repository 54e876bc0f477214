"""Distillation: a student learns to make in one jump what its teacher makes in several steps.

A point of the student's grid is drawn, its jump to the end of the segment is compared with a
target (`targets.py`), and frames without noise count for nothing. Levels belong to frames, so that
whole clips and the buffers of streams are the same case. Guidance is inside of the target: the
student is sampled without.

A student of one chunk after the other (`source` stream, `lag` of all segments) learns behind the
true past, from a teacher that sees it too and nothing of what follows: the consistency stage of
Causal Forcing (thu-ml/Causal-Forcing). Ends of a teacher that denoises all frames together have
another law behind a first frame, and so has a student that regresses them, as Self-Forcing
(arXiv:2506.08009) begins: `tests/training/test_causal_student.py`.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Int, Key, Latents, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.models.conditions import Conditions
from jvdm.samplers import ClassifierFree, FlowMap, LagMatrix
from jvdm.samplers.denoiser import Call, make_denoiser
from jvdm.samplers.process import corrupt, expand, mix
from jvdm.samplers.rules import ExplicitLevels
from jvdm.samplers.segments import Segments, divided, follow
from jvdm.samplers.starts import SegmentStarts, StreamStarts
from jvdm.samplers.timesteps import CleanPrefix, Mixture, TimestepSampler
from jvdm.system import System, rules_of
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.objective import TrainCall
from jvdm.training.targets import TARGETS, Point
from jvdm.training.teachers import arrays_of, guided_teacher, teacher_of
from jvdm.weights.package import Components

_WIDTH = 1e-3  # of the pseudo-Huber loss


class Teacher(NamedTuple):
    """A weights folder that teaches: its networks and rules, with guidance as it is taught."""

    system: System
    segments: Segments


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A student of few steps of a text-to-video model.

    A batch holds `latents [B, F, H, W, C]`, standardised, `tokens`, what the text encoder reads,
    and `actions` i32[B, F] where the world is played. The loss is the error of where jumps end,
    over the length of their segments, so that short ones count as much as long ones; averaged over
    the frames that are noisy. The weights are sampled at `edges`, without guidance.
    """

    system: System
    """The student. Its process is the teacher's; it begins as the teacher by `start_from`."""
    teacher: str = "tiny_t2v"
    """Weights folder of the teacher, or name of embedded weights."""
    edges: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.0)
    """Levels of the student, descending to 0."""
    target: Literal["segment", "consistency", "flow_map"] = "segment"
    """What jumps are compared with: the end of the teacher's way, or of its average's jump.

    With `flow_map` jumps lead from any point to any other, and the weights are sampled at the
    levels of the system, any number of them, instead of the edges.
    """
    micro: int = 4
    """Steps of the teacher in a segment, spaced as its own levels are."""
    guidance: float | None = None
    """Guidance scale of the teacher; its own rule when left out."""
    given: float = 0.0
    """Share of clips with clean frames, at the beginning or both ends, to go on from pictures."""
    source: Literal["data", "stream"] = "data"
    """Whether all frames of a clip have one level, or its chunks are segments apart."""
    chunk: int = 2
    """Latent frames of a chunk of a stream."""
    lag: int = 1
    """Segments between its chunks; as many as there are make one chunk after the other."""
    loss_kind: Literal["mse", "huber"] = "mse"
    """How an error counts."""

    def __post_init__(self) -> None:
        """Refuses settings that need no teacher to be known as wrong."""
        divided(np.array([max(self.edges, default=1.0), 0.0]), self.edges, self.micro)
        if self.target not in TARGETS:
            raise ConfigError(f"target is {self.target!r}", f"known are {', '.join(TARGETS)}", "")
        self._check_jumps()
        if self.chunk < 1:
            raise ConfigError(f"chunk is {self.chunk}", "a chunk has a frame at least", "use 2")
        if not 1 <= self.lag < len(self.edges):
            what, most = f"lag is {self.lag}", len(self.edges) - 1
            why = f"a chunk waits for the one before, and has {most} segments"
            raise ConfigError(what, why, f"use 1 to {most}")
        if not 0 <= self.given <= 1:
            raise ConfigError(f"given is {self.given:g}", "it is a share", "use 0 to 1")

    def _check_jumps(self) -> None:
        """Refuses a flow map of a network that is not told where jumps end, or of streams."""
        if self.target != "flow_map":
            return
        if not getattr(self.system.model, "next_share", 0.0):
            what = "a flow map of a network that is not told where its jumps end"
            why = "from one level it is to say another velocity for every end"
            raise ConfigError(what, why, "build the model with next_share=0.25")
        if self.source == "stream":
            what, why = "a flow map of streams", "chunks are apart by jumps of one number of steps"
            raise ConfigError(what, why, "use --objective.source data, or another target")

    @property
    def taught(self) -> Teacher:
        """The teacher without its arrays.

        Raises:
            WeightsError: If its folder cannot be read.
            ConfigError: If the student's process, latents or actions are others.
        """
        system, grid = teacher_of(self.teacher, self.system, self.guidance)
        return Teacher(system, divided(grid, self.edges, self.micro))

    @property
    def passes(self) -> float:
        """What a step costs for each pass of the loss, of which the target's have no gradient."""
        target = TARGETS[self.target]
        more = target.passes(self.micro, len(self.taught.system.branches))
        return (3.0 + more) / (1.0 + more)

    def init(self, key: Key) -> PyTree:
        """Returns fresh `{"text": ..., "model": ...}`; raises what `taught` raises."""
        assert self.taught
        return self.system.init_denoiser(key)

    def frozen(self) -> PyTree:
        """Reads the teacher's text encoder and network."""
        return arrays_of(self.teacher, self.taught.system)

    def rows(self, segments: Segments) -> TimestepSampler:
        """Returns what draws levels of clips."""
        inside = TARGETS[self.target].inside
        levels = segments.points[:-1] if inside else segments.edges[:-1]
        starts: TimestepSampler = SegmentStarts(levels)
        if self.source == "stream":
            each = segments.micro if inside else 1
            starts = StreamStarts(levels, self.chunk, each, lag=self.lag)
        return Mixture((starts, CleanPrefix(starts)), (1.0 - self.given, self.given))

    def jump(
        self,
        params: PyTree,
        told: Conditions,
        x: Latents,
        t: NoiseLevels,
        s: NoiseLevels,
        end: NoiseLevels | None = None,
    ) -> Latents:
        """Returns the student's latents at levels `s`, bit for bit `x` where `s` is `t`.

        It is told that the jump leads to `end`; None is the truth.
        """
        system = self.system
        denoise = make_denoiser(system.predict(params, told), system.process, system.prediction)
        said = denoise(x, Call.at(t, s if end is None else end), None)[0]
        landed = mix(system.process.alpha(s), system.process.sigma(s), said.x0, said.eps)
        return jnp.where(expand(s == t, x), x, landed)

    def walk(
        self,
        frozen: PyTree,
        tokens: PyTree,
        key: Key,
        point: Point,
        steps: int,
        actions: Int[Array, "B F"] | None = None,
    ) -> Latents:
        """Returns where the guided teacher gets in `steps` of its steps from a point."""
        teacher = self.taught
        system = teacher.system
        denoise = guided_teacher(system, frozen, self.system.text, tokens, actions)
        carry = system.start(point.x.shape, point.x.shape[1])
        rows = teacher.segments.way(point.t, steps, point.s)
        rules = (system.sampling.solver, system.process)
        return follow(denoise, *rules, rows, point.x, key, carry)

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the mean error of jumps over the frames that are noisy."""
        process, segments, tokens = self.system.process, self.taught.segments, batch["tokens"]
        clean = batch["latents"].astype(jnp.float32)
        row = self.rows(segments)(named(call.key, "rows"), *clean.shape[:2])
        noise = jax.random.normal(named(call.key, "noise"), clean.shape, jnp.float32)
        mask = row.loss_mask * (row.t > 0)
        target = TARGETS[self.target]
        ends = target.ends(named(call.key, "ends"), row.t, segments)
        stop, end = (jnp.where(mask > 0, level, row.t) for level in (ends.s, ends.told))
        point = Point(corrupt(process, clean, row.t, noise), row.t, stop)
        acted = {"actions": batch["actions"]} if "actions" in batch else {}
        told = functools.partial(self.system.told, ids=tokens, **acted)
        average = functools.partial(self.jump, call.ema, told(call.ema))
        walk = functools.partial(self.walk, call.frozen, tokens, call.key, **acted)
        aim = jax.lax.stop_gradient(target(point, segments, walk, average))
        landed = self.jump(params, told(params), *point, end)
        error = (landed - aim) / expand(ends.width, aim)
        square = jnp.square(error)
        if self.loss_kind == "huber":
            square = jnp.sqrt(square + _WIDTH**2) - _WIDTH
        per_frame = jnp.mean(square, (2, 3, 4))
        return jnp.sum(per_frame * mask) / jnp.maximum(jnp.sum(mask), 1.0), {}

    def components(self, params: PyTree) -> Components:
        """Returns the text encoder and the network."""
        return FlowMatching(self.system).components(params)

    @property
    def rules(self) -> dict[str, Any]:
        """Process, prediction and sampling, for the manifest: the edges, without guidance.

        A stream's chunks are made as many jumps apart as in training.
        """
        own = {} if self.target == "flow_map" else {"levels": ExplicitLevels(self.edges)}
        wave = {"matrix": LagMatrix(self.lag, self.chunk)} if self.source == "stream" else {}
        sampling = dataclasses.replace(
            self.system.sampling,
            **(own | wave),
            solver=FlowMap(),
            guidance=ClassifierFree(1.0),
        )
        return rules_of(dataclasses.replace(self.system, sampling=sampling))
