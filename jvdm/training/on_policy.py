"""A flow map that learns from clips of its own, for any number of steps at once.

A flow map that is trained on noised films (`flow_map` of `jvdm.training.distillation`) is never
shown what its own jumps lead to, and what they lose adds up. Here they make clips, which are
matched with the teacher's law (AnyFlow, arXiv:2605.13724, on-policy distillation; NVlabs/AnyFlow).
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Key, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.samplers import SynchronousMatrix
from jvdm.samplers.timesteps import per_clip, uniform_integer
from jvdm.training.distillation import Distillation
from jvdm.training.distribution_matching import DistributionMatching, parts_of
from jvdm.training.objective import TrainCall
from jvdm.training.rollouts import Rollout


@dataclasses.dataclass(frozen=True)
class OnPolicyFlowMap(DistributionMatching):
    """Distribution matching of clips that a flow map makes, and its training on films beside it.

    Whatever the number of steps of a run, three jumps stand for it: one to the level of one of its
    steps, that step, and one to clean clips; the gradient goes through all three. Number and step
    are drawn for each clip.

    Raises:
        ConfigError: If the network is not told where a jump ends, its levels are not those of any
            number of steps, a number is out of its range, or a rule of `DistributionMatching` is
            set that is for chunks.
    """

    score_updates: int = 1
    """Updates of the second network before each of the student."""
    steps: tuple[int, ...] = (2, 4, 8, 16, 50)
    """Numbers of steps of a run, of equal chances; levels are those of the system."""
    forward: float = 1.0
    """Weight of the error of jumps from noised films."""
    micro: int = 16
    """Steps of the teacher from noise to clean clips, between whose points those jumps lead."""

    def __post_init__(self) -> None:
        """Refuses what needs no teacher to be known as wrong."""
        super().__post_init__()
        matrix = self.system.sampling.matrix
        if self.past != "own" or self.chunkwise or not isinstance(matrix, SynchronousMatrix):
            what = f"clips of a flow map with past {self.past}, chunkwise {self.chunkwise:g} and"
            what += f" {type(matrix).__name__}"
            fix = "use --objective.system.sampling.matrix synchronous, and leave the others out"
            raise ConfigError(what, "they are made whole, in jumps of all frames", fix)
        if not self.steps or min(self.steps) < 1 or not 0 <= self.forward < float("inf"):
            what = f"steps are {self.steps}, forward is {self.forward:g}"
            raise ConfigError(what, "a run has a step, and a weight is 0 or more", "use 2,4 and 1")
        assert self.on_films
        assert len(self.stops)

    @property
    def on_films(self) -> Distillation:
        """The objective of jumps from noised films; its jump is the student's."""
        given = {"teacher": self.teacher, "guidance": self.guidance, "micro": self.micro}
        return Distillation(self.system, edges=(1.0, 0.0), target="flow_map", **given)

    @property
    def stops(self) -> Float[np.ndarray, "runs levels"]:
        """The levels of a run of each of `steps`; those of short ones end in zeros."""
        rule = self.system.sampling.levels
        if "num_steps" not in {field.name for field in dataclasses.fields(rule)}:
            what = f"a flow map that is sampled at {type(rule).__name__}"
            why = "it is trained for several numbers of steps"
            raise ConfigError(what, why, "use --objective.system.sampling.levels shifted")
        with jax.ensure_compile_time_eval():  # they are numbers, also where a step is traced
            grids = [np.asarray(dataclasses.replace(rule, num_steps=n)()) for n in self.steps]
        most = max(map(len, grids))
        return np.stack([np.pad(grid, (0, most - len(grid))) for grid in grids])

    def ways(self, key: Key, count: int) -> Float[Array, "B four"]:
        """Returns the levels between which the three jumps of each of `count` clips lead."""
        stops, steps = jnp.asarray(self.stops, jnp.float32), jnp.asarray(self.steps)

        def way(key: Key) -> Array:
            run, place = jax.random.uniform(key, (2,))
            chosen = uniform_integer(run, len(self.steps))
            step = uniform_integer(place, steps[chosen])
            levels = stops[chosen]
            return jnp.stack([levels[0], levels[step], levels[step + 1], jnp.zeros(())])

        return per_clip(way, key, count)

    def roll(self, student: PyTree, batch: PyTree, key: Key) -> Rollout:
        """Returns clips that three jumps of the student make for the prompts of a batch."""
        shape = batch["latents"].shape
        x = jax.random.normal(named(key, "noise"), shape, jnp.float32)
        told = self.system.told(student, batch["tokens"])
        ways = self.ways(named(key, "ways"), shape[0])
        levels = [jnp.broadcast_to(ways[:, i, None], shape[:2]) for i in range(4)]
        for start, end in itertools.pairwise(levels):
            x = self.on_films.jump(student, told, x, start, end)
        still = jax.lax.stop_gradient(x)
        return Rollout(x, still, still)

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the loss of matched clips and, weighed, the error of jumps from noised films."""
        matched, metrics = super().loss(params, batch, call)
        error, more = self.on_films.loss(parts_of(params)[0], batch, call)
        return matched + self.forward * error, {**metrics, **more, "forward_loss": error}
