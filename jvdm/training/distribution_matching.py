"""Distribution matching: a student whose own clips should have the law of its teacher's.

Nothing says what a student should make of which noise. Its clips are noised, and two networks say
what they were: the teacher, with guidance, and one that is trained beside the student on what the
student makes. Where they differ, clips move the way that the teacher says (DMD, arXiv:2311.18828;
the second network is trained more often than the student, and the student on its own runs: DMD2,
arXiv:2405.14867). With its adversarial term a head on the second network tells clips from films,
and the student passes for the data where the teacher errs. With a student of one chunk after the
other and a cache of keys and values it is Self-Forcing (arXiv:2506.08009).
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jvdm.arrays import Array, Float, Key, Latents, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.samplers import AutoregressiveMatrix, LagMatrix
from jvdm.samplers.denoiser import Call, Predict, ask, make_denoiser
from jvdm.samplers.process import corrupt, from_x0_eps
from jvdm.samplers.starts import SegmentStarts
from jvdm.system import System, rules_of
from jvdm.training.critic import Critic, told_apart
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.objective import TrainCall, Updated
from jvdm.training.optimizer import Optimizer
from jvdm.training.rollouts import Rollout, Rollouts
from jvdm.training.teachers import arrays_of, guided_teacher, teacher_of
from jvdm.weights.package import Components

STUDENT, SCORE, CRITIC = ("text", "model"), "score", "critic"
WITHIN = (0.02, 0.98)
"""Part of a teacher's levels, by their number, at which clips are compared (DMD, section 4)."""
_LEAST = 1e-6  # latents: a clip that is the teacher's exactly has no direction


class Players(NamedTuple):
    """An optimizer for each player."""

    student: optax.GradientTransformation
    score: optax.GradientTransformation

    def init(self, params: PyTree) -> PyTree:
        """Returns the state of both."""
        student, second = parts_of(params)
        return {"student": self.student.init(student), "score": self.score.init(second)}


@dataclasses.dataclass(frozen=True)
class DistributionMatching:
    """A student of few steps that learns from the clips that it makes as it is sampled.

    A batch holds `tokens`, what the text encoder reads, and `latents [B, F, H, W, C]`, of which
    the sizes are used, and the values only with the `true` past or a critic. Parameters are those
    of the student, `text` and `model`, `score`, what the second network has moved away from the
    teacher's, and `critic`, a head on its middle layer, where there is one. The loss of a step is
    the mean squared difference of both opinions, normalised, and how far the critic is not fooled.

    Raises:
        ConfigError: If a number is out of its range, the student is told actions, or it is sampled
            in a way that cannot be trained on (`jvdm.training.rollouts`).
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
    adversarial: float = 0.0
    """Weight of the adversarial term, for the student and the second network; 0 is no critic."""
    chunkwise: float = 0.0
    """Share of runs made chunk after chunk, of a student that is sampled in a rolling window."""

    def __post_init__(self) -> None:
        """Refuses what needs no teacher to be known as wrong."""
        if not 0 <= self.adversarial < math.inf:
            what = f"adversarial is {self.adversarial:g}"
            raise ConfigError(what, "it is a weight", "use 0 for no critic, or as 0.01")
        if self.score_updates < 1 or self.score_rate <= 0:
            what = f"score_updates is {self.score_updates}, score_rate {self.score_rate:g}"
            raise ConfigError(what, "the second network must follow", "use 1 or more, and above 0")
        if getattr(self.system.model, "actions", ()):
            what = "matching of clips that are played"
            why = "clips of the student and opinions of them are of the prompt alone"
            raise ConfigError(what, why, "train it by consistency (configs/nfd_few_steps.py)")
        for system in self._ways:
            Rollouts(system)

    @property
    def _ways(self) -> tuple[System, ...]:
        """The student as it is sampled, and chunk after chunk where some runs are made so."""
        if not self.chunkwise:
            return (self.system,)
        sampling: Any = self.system.sampling
        rule: Any = getattr(sampling.matrix, "rule", None)
        if not 0 < self.chunkwise <= 1 or not isinstance(rule, LagMatrix):
            what = f"chunkwise is {self.chunkwise:g}, with {type(sampling.matrix).__name__}"
            why = "it is a share, and chunks of a cached wave are made one after the other instead"
            raise ConfigError(what, why, "use 0 to 1, and 0 but for --sampling.matrix.rule lag")
        chunks = AutoregressiveMatrix(rule.block, rule.first_block)
        matrix = dataclasses.replace(sampling.matrix, rule=chunks)
        sampling = dataclasses.replace(sampling, matrix=matrix)
        return self.system, dataclasses.replace(self.system, sampling=sampling)

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
        """Returns fresh parameters of both players; raises what `taught` raises."""
        taught = self.taught[0]
        shapes = jax.eval_shape(taught.init_denoiser, key)["model"]
        moved = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        params = {**self.system.init_denoiser(key), SCORE: moved}
        if not self.adversarial:
            return params
        seen = jnp.zeros((1, 1, self._watched(taught).model.width))
        return {**params, CRITIC: Critic().init(named(key, CRITIC), seen)["params"]}

    def frozen(self) -> PyTree:
        """Reads the teacher's text encoder and network."""
        return arrays_of(self.teacher, self.taught[0])

    def roll(self, student: PyTree, batch: PyTree, key: Key) -> Rollout:
        """Returns clips that the student makes for the prompts of a batch."""
        shape = batch["latents"].shape
        noise = jax.random.normal(named(key, "noise"), shape, jnp.float32)
        ways = [Rollouts(system) for system in self._ways]
        chosen = jax.random.randint(named(key, "exit"), (), 0, ways[0].steps)
        past = batch["latents"].astype(jnp.float32) if self.past == "true" else None
        told = self.system.told(student, batch["tokens"])
        makes = [functools.partial(way.make, student, told, noise, chosen) for way in ways]
        way = jax.random.bernoulli(named(key, "way"), self.chunkwise)
        return jax.lax.switch(way.astype(jnp.int32), makes, named(key, "run"), past)

    def real(self, frozen: PyTree, tokens: PyTree, x: Latents, t: NoiseLevels) -> Latents:
        """Returns the clean clips that the teacher sees in `x`, guided."""
        system = self.taught[0]
        denoise = guided_teacher(system, frozen, self.system.text, tokens)
        return denoise(x, Call.at(t), system.start(x.shape, x.shape[1]))[0].x0

    def second(
        self, score: PyTree, frozen: PyTree, tokens: PyTree, watched: bool = False
    ) -> Predict:
        """Returns the second network: the teacher's, moved, told the prompts.

        If it is `watched`, its carry has the tokens behind its middle layer as features.
        """
        system = self.taught[0]
        moved = jax.tree.map(jnp.add, frozen["model"], score)
        told = system.told(frozen, tokens)
        return (self._watched(system) if watched else system).predict({"model": moved}, told)

    def noised(self, clips: Latents, key: Key) -> tuple[Latents, NoiseLevels, Latents]:
        """Returns clips at levels at which they are compared, the levels, and the noise."""
        system, rows = self.taught
        t = rows(named(key, "levels"), *clips.shape[:2]).t
        noise = jax.random.normal(named(key, "noise"), clips.shape, jnp.float32)
        return corrupt(system.process, clips, t, noise), t, noise

    def judged(
        self, second: PyTree, frozen: PyTree, tokens: PyTree, clips: Latents, key: Key
    ) -> tuple[Float[Array, ""], Any]:
        """Returns the second network's error on noised clips, and what its critic says of them.

        Args:
            second: Parameters of the second network and of the critic.
            frozen: The teacher's.
            tokens: The prompts.
            clips: Clean latents, of the student or of the data.
            key: Says levels and noise.

        Returns:
            The mean squared error of its prediction, and the critic's logits `[B, L]` of what it
            saw in the same call; None where there is no critic.
        """
        system, (x, t, noise) = self.taught[0], self.noised(clips, key)
        network = self.second(second[SCORE], frozen, tokens, watched=self.adversarial > 0)
        said, carry = ask(network, system.process, x, Call.at(t), None)
        true = from_x0_eps(system.process, system.prediction, clips, noise, t)
        error = jnp.mean(jnp.square(said - true))
        if not self.adversarial:
            return error, None
        return error, Critic().apply({"params": second[CRITIC]}, carry.features[0])

    @staticmethod
    def _watched(system: System) -> System:
        model: Any = system.model
        if not hasattr(model, "collect"):
            what = f"a critic of what a {type(model).__name__} sees"
            raise ConfigError(what, "it hands on no features", "use --objective.adversarial 0")
        return dataclasses.replace(system, model=model.clone(collect=(model.depth // 2,)))

    def differ(
        self, params: PyTree, frozen: PyTree, tokens: PyTree, made: Latents, key: Key
    ) -> Latents:
        """Returns what the second network sees in noised clips less what the teacher sees.

        It is divided by the mean distance of a clip from what the teacher sees, so that all levels
        count alike; clips improve the other way (DMD, arXiv:2311.18828, equations 7 and 8).
        """
        system, (x, t, _) = self.taught[0], self.noised(made, key)
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

        The gradient by the clips is the difference itself, over the number of latents, and what
        makes the critic take them for films.
        """
        student, second = parts_of(params)
        made = self.roll(student, batch, named(call.key, "student")).made
        still = jax.lax.stop_gradient((params, made))
        given = (call.frozen, batch["tokens"])
        off = jax.lax.stop_gradient(self.differ(still[0], *given, still[1], call.key))
        loss = 0.5 * jnp.mean(jnp.square(made - (still[1] - off)))
        if not self.adversarial:
            return loss, {}
        second, key = jax.lax.stop_gradient(second), named(call.key, CRITIC)
        logits = self.judged(second, *given, made, key)[1]
        unfooled = jax.nn.softplus(-logits).mean()
        return loss + self.adversarial * unfooled, {"unfooled": unfooled}

    def score_loss(
        self, second: PyTree, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the error of the second network on noised clips of the student, and each part."""
        student = jax.lax.stop_gradient(parts_of(params)[0])
        made = self.roll(student, batch, named(call.key, "clips")).still
        given, key = (second, call.frozen, batch["tokens"]), named(call.key, SCORE)
        error, of_made = self.judged(*given, made, key)
        if not self.adversarial:
            return error, {"score_loss": error}
        of_true = self.judged(*given, batch["latents"].astype(jnp.float32), key)[1]
        critic = told_apart(of_true, of_made)
        return error + self.adversarial * critic, {"score_loss": error, "critic_loss": critic}

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

        slope = jax.value_and_grad(self.score_loss, has_aux=True)

        def learn(now: tuple[PyTree, PyTree], turn: Array) -> tuple[tuple, tuple[dict, Array]]:
            second, state = now
            told = call._replace(key=jax.random.fold_in(named(call.key, SCORE), turn))
            (_, errors), gradient = slope(second, params, batch, told)
            change, state = transform.score.update(gradient, state, second)
            after = optax.apply_updates(second, change)
            return (after, state), (errors, optax.tree.norm(gradient))

        student, second = parts_of(params)
        turns = jnp.arange(self.score_updates)
        (second, state), (errors, norms) = jax.lax.scan(learn, (second, opt_state["score"]), turns)

        def of_student(student: PyTree) -> tuple[Array, dict[str, Array]]:
            return self.loss({**student, **second}, batch, call)

        (loss, metrics), gradient = jax.value_and_grad(of_student, has_aux=True)(student)
        change, mine = transform.student.update(gradient, opt_state["student"], student)
        moved: Any = optax.apply_updates(student, change)
        return Updated(
            {**moved, **second},
            {"student": mine, "score": state},
            loss,
            jnp.hypot(optax.tree.norm(gradient), jnp.max(norms)),
            {**metrics, **{name: each[-1] for name, each in errors.items()}},
        )

    def components(self, params: PyTree) -> Components:
        """Returns the text encoder and the network of the student."""
        return FlowMatching(self.system).components(params)

    @property
    def rules(self) -> dict[str, Any]:
        """Process, prediction and sampling, for the manifest: as the student was trained."""
        return rules_of(self.system)


def parts_of(params: PyTree) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """Returns the parameters of the student, and those of the second network and its critic."""
    second = {name: params[name] for name in (SCORE, CRITIC) if name in params}
    return {name: params[name] for name in STUDENT}, second
