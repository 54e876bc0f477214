"""Distribution matching: a student whose own clips should have the law of its teacher's.

Nothing says what a student should make of which noise. Its clips are noised, and two networks say
what they were: the teacher, with guidance, and one that is trained beside the student on what the
student makes. Where they differ, clips move the way that the teacher says (DMD, arXiv:2311.18828;
the second network is trained more often than the student, and the student on its own runs: DMD2,
arXiv:2405.14867, here without its adversarial term). With a student of one chunk after the other
and a cache of keys and values it is Self-Forcing (arXiv:2506.08009).
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jvdm.arrays import Array, Key, Latents, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.samplers.denoiser import Call, Predict, ask, make_denoiser
from jvdm.samplers.loss_weights import Unweighted
from jvdm.samplers.process import corrupt
from jvdm.samplers.starts import SegmentStarts
from jvdm.system import System, rules_of
from jvdm.training.flow_matching import FlowMatching, regression
from jvdm.training.objective import TrainCall, Updated
from jvdm.training.optimizer import Optimizer
from jvdm.training.rollouts import Rollout, Rollouts
from jvdm.training.teachers import arrays_of, guided_teacher, teacher_of
from jvdm.weights.package import Components

STUDENT, SCORE = ("text", "model"), "score"
WITHIN = (0.02, 0.98)
"""Part of a teacher's levels, by their number, at which clips are compared (DMD, section 4)."""
_LEAST = 1e-6  # latents: a clip that is the teacher's exactly has no direction


class Players(NamedTuple):
    """An optimizer for each player."""

    student: optax.GradientTransformation
    score: optax.GradientTransformation

    def init(self, params: PyTree) -> PyTree:
        """Returns the state of both."""
        student, score = parts_of(params)
        return {"student": self.student.init(student), "score": self.score.init(score)}


@dataclasses.dataclass(frozen=True)
class DistributionMatching:
    """A student of few steps that learns from the clips that it makes as it is sampled.

    A batch holds `tokens`, what the text encoder reads, and `latents [B, F, H, W, C]`, of which
    the sizes are used, and the values only with the `true` past. Parameters are those of the
    student, `text` and `model`, and `score`: what the second network has moved away from the
    teacher's. The loss of a step is the mean squared difference of both opinions, normalised.

    Raises:
        ConfigError: If a number is out of its range, or the system is sampled in a way that cannot
            be trained on (`jvdm.training.rollouts`).
    """

    system: System
    """The student: levels, matrix, solver and attention of its sampling say how clips are made."""
    teacher: str = "tiny_t2v"
    """Weights folder of the teacher, or name of embedded weights."""
    guidance: float | None = None
    """Guidance scale of the teacher; its own rule when left out."""
    score_updates: int = 5
    """Updates of the second network before each of the student."""
    score_rate: float = 1.0
    """Its learning rate over the student's."""
    past: Literal["own", "true"] = "own"
    """What is shown for finished frames: what was made, or those of the batch (teacher forcing)."""

    def __post_init__(self) -> None:
        """Refuses what needs no teacher to be known as wrong."""
        if self.score_updates < 1 or self.score_rate <= 0:
            what = f"score_updates is {self.score_updates}, score_rate {self.score_rate:g}"
            raise ConfigError(what, "the second network must follow", "use 1 or more, and above 0")
        Rollouts(self.system)

    @property
    def taught(self) -> tuple[System, SegmentStarts]:
        """The teacher without its arrays, and what draws the levels at which clips are compared.

        Raises:
            WeightsError: If its folder cannot be read.
            ConfigError: If the student's process or latents are others.
        """
        system, grid = teacher_of(self.teacher, self.system, self.guidance)
        first, last = (round(share * (len(grid) - 1)) for share in WITHIN)
        return system, SegmentStarts(tuple(grid[first : last + 1].tolist()))

    def init(self, key: Key) -> PyTree:
        """Returns fresh `{"text", "model", "score"}`; raises what `taught` raises."""
        shapes = jax.eval_shape(self.taught[0].init_denoiser, key)["model"]
        moved = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return {**self.system.init_denoiser(key), SCORE: moved}

    def frozen(self) -> PyTree:
        """Reads the teacher's text encoder and network."""
        return arrays_of(self.teacher, self.taught[0])

    def roll(self, student: PyTree, batch: PyTree, key: Key) -> Rollout:
        """Returns clips that the student makes for the prompts of a batch."""
        shape = batch["latents"].shape
        noise = jax.random.normal(named(key, "noise"), shape, jnp.float32)
        rollouts = Rollouts(self.system)
        chosen = jax.random.randint(named(key, "exit"), (), 0, rollouts.steps)
        past = batch["latents"].astype(jnp.float32) if self.past == "true" else None
        told = self.system.told(student, batch["tokens"])
        return rollouts.make(student, told, noise, chosen, named(key, "run"), past)

    def real(self, frozen: PyTree, tokens: PyTree, x: Latents, t: NoiseLevels) -> Latents:
        """Returns the clean clips that the teacher sees in `x`, guided."""
        system = self.taught[0]
        denoise = guided_teacher(system, frozen, self.system.text, tokens)
        return denoise(x, Call.at(t), system.start(x.shape, x.shape[1]))[0].x0

    def second(self, score: PyTree, frozen: PyTree, tokens: PyTree) -> Predict:
        """Returns the second network: the teacher's, moved, told the prompts."""
        system = self.taught[0]
        moved = jax.tree.map(jnp.add, frozen["model"], score)
        return system.predict({"model": moved}, system.told(frozen, tokens))

    def differ(
        self, params: PyTree, frozen: PyTree, tokens: PyTree, made: Latents, key: Key
    ) -> Latents:
        """Returns what the second network sees in noised clips less what the teacher sees.

        It is divided by the mean distance of a clip from what the teacher sees, so that all levels
        count alike; clips improve the other way (DMD, arXiv:2311.18828, equations 7 and 8).
        """
        system, rows = self.taught
        t = rows(named(key, "levels"), *made.shape[:2]).t
        noise = jax.random.normal(named(key, "noise"), made.shape, jnp.float32)
        x = corrupt(system.process, made, t, noise)
        real = self.real(frozen, tokens, x, t)
        network = self.second(params[SCORE], frozen, tokens)
        denoise = make_denoiser(network, system.process, system.prediction)
        fake = denoise(x, Call.at(t), None)[0].x0
        size = jnp.mean(jnp.abs(made - real), (1, 2, 3, 4), keepdims=True)
        return (fake - real) / jnp.maximum(size, _LEAST)

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns half the mean square of the normalised difference; its gradient is the student's.

        The gradient by the clips is the difference itself, over the number of latents.
        """
        student, _ = parts_of(params)
        made = self.roll(student, batch, named(call.key, "student")).made
        still = jax.lax.stop_gradient((params, made))
        given = (call.frozen, batch["tokens"])
        off = jax.lax.stop_gradient(self.differ(still[0], *given, still[1], call.key))
        return 0.5 * jnp.mean(jnp.square(made - (still[1] - off))), {}

    def score_loss(self, score: PyTree, params: PyTree, batch: PyTree, call: TrainCall) -> Array:
        """Returns the error of the second network on noised clips of the student."""
        (system, rows), (student, _) = self.taught, parts_of(params)
        made = self.roll(jax.lax.stop_gradient(student), batch, named(call.key, "clips")).still
        network = self.second(score, call.frozen, batch["tokens"])

        def predict(x: Latents, t: NoiseLevels) -> Latents:
            return ask(network, system.process, x, Call.at(t), None)[0]

        return regression(system, predict, made, rows, Unweighted(), named(call.key, "score"))

    def transform(self, optimizer: Optimizer, num_steps: int) -> Players:
        """Returns both optimizers: equal but for their rates and how often they are asked."""
        other = dataclasses.replace(
            optimizer,
            learning_rate=self.score_rate * optimizer.learning_rate,
            warmup_steps=self.score_updates * optimizer.warmup_steps,
        )
        return Players(optimizer.build(num_steps), other.build(self.score_updates * num_steps))

    def update(
        self, params: PyTree, opt_state: PyTree, batch: PyTree, call: TrainCall, transform: Players
    ) -> Updated:
        """Moves the second network so many times on clips of their own, then the student once."""

        def learn(now: tuple[PyTree, PyTree], turn: Array) -> tuple[tuple, tuple[Array, Array]]:
            score, state = now
            told = call._replace(key=jax.random.fold_in(named(call.key, SCORE), turn))
            error, gradient = jax.value_and_grad(self.score_loss)(score, params, batch, told)
            change, state = transform.score.update(gradient, state, score)
            after = optax.apply_updates(score, change)
            return (after, state), (error, optax.tree.norm(gradient))

        begun = (params[SCORE], opt_state["score"])
        (score, state), (errors, norms) = jax.lax.scan(learn, begun, jnp.arange(self.score_updates))
        student, _ = parts_of(params)

        def of_student(student: PyTree) -> tuple[Array, dict[str, Array]]:
            return self.loss({**student, SCORE: score}, batch, call)

        (loss, metrics), gradient = jax.value_and_grad(of_student, has_aux=True)(student)
        change, mine = transform.student.update(gradient, opt_state["student"], student)
        moved: Any = optax.apply_updates(student, change)
        return Updated(
            {**moved, SCORE: score},
            {"student": mine, "score": state},
            loss,
            jnp.hypot(optax.tree.norm(gradient), jnp.max(norms)),
            {**metrics, "score_loss": errors[-1]},
        )

    def components(self, params: PyTree) -> Components:
        """Returns the text encoder and the network of the student."""
        return FlowMatching(self.system).components(params)

    @property
    def rules(self) -> dict[str, Any]:
        """Process, prediction and sampling, for the manifest: as the student was trained."""
        return rules_of(self.system)


def parts_of(params: PyTree) -> tuple[dict[str, PyTree], PyTree]:
    """Returns the parameters of the student, and those of the second network."""
    return {name: params[name] for name in STUDENT}, params[SCORE]
