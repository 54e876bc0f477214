"""Training of a model that plans: its codes, what foretells them, and what follows the plan."""

import dataclasses

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Key, Latents, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.models.conditions import Conditions, PlanCondition
from jvdm.models.low_rank import variables
from jvdm.samplers.denoiser import Call, ask
from jvdm.training.flow_matching import FlowMatching, regression, some_replaced
from jvdm.training.objective import TrainCall


@dataclasses.dataclass(frozen=True)
class PlannedMatching(FlowMatching):
    """Flow matching of `jvdm.models.planned`, all three parts at once.

    The network follows true codes; the latents that they say are noised, each number by up to
    `uncertain` times the deviation of its channel, so that wrong codes of a language model look
    like what it was trained on (ARLON, arXiv:2410.20502, uncertainty sampling). No part moves
    another's parameters but the text encoder, which video model and language model read.

    Raises:
        ConfigError: If a number is out of its range, or the network does not plan.
    """

    uncertain: float = 1.0
    """Greatest noise of a plan, in deviations of a channel; 0 shows true plans."""
    drop_plan: float = 0.1
    """Share of clips without a plan."""
    foretelling: float = 0.2
    """Weight of the language model's loss, in nats a code."""

    def __post_init__(self) -> None:
        """Refuses what cannot be trained so."""
        if self.uncertain < 0 or not 0 <= self.drop_plan <= 1 or self.foretelling < 0:
            what = f"uncertain is {self.uncertain:g}, drop_plan {self.drop_plan:g}, "
            what += f"foretelling {self.foretelling:g}"
            why = "they are a deviation, a share and a weight"
            raise ConfigError(what, why, "use 0 or more, and a share up to 1")
        if not hasattr(self.system.model, "along"):
            what = f"plans were to be trained with {type(self.system.model).__name__}"
            raise ConfigError(what, "it makes none", "use a PlannedDiT")

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the sum of the losses of all parts, and each."""
        system, network = self.system, self.system.network
        nothing = jax.tree.map(jnp.asarray, system.text.read(("",))[0])
        tokens = some_replaced(batch["tokens"], nothing, self.drop_text, named(call.key, "drop"))
        text, arrays = system.told(params, tokens).text, variables(params["model"])
        clean = batch["latents"].astype(jnp.float32)
        coded = network.apply(arrays, clean, method="coded")
        columns = clean.shape[3] // network.cells
        logits = network.apply(arrays, coded.codes, columns, text, method="foretold")
        said = jax.nn.log_softmax(logits)
        right = jnp.take_along_axis(said, coded.codes[..., None], -1)
        plan = self._uncertain(coded.rebuilt, named(call.key, "plan"))

        def predict(x: Latents, t: NoiseLevels) -> Latents:
            def along(x: Latents, call: Call, carry: PyTree) -> tuple[Latents, PyTree]:
                told = Conditions(text, plan=plan)
                return network.apply(arrays, x, call, told, method="along")[0], carry

            return ask(along, system.process, x, Call.at(t), None)[0]

        given = (batch["latents"], self.rows, self.weights, call.key)
        velocity, foretold = regression(system, predict, *given), -right.mean()
        parts = {"velocity": velocity, "coding": coded.loss, "foretelling": foretold}
        total = velocity + coded.loss + self.foretelling * foretold
        return total, {**parts, "codes_used": coded.used}

    def _uncertain(self, latents: Latents, key: Key) -> PlanCondition:
        """Returns plans as the network is told them: noised, and of most clips."""
        count = len(latents)
        noise = jax.random.normal(named(key, "noise"), latents.shape)
        amount = jax.random.uniform(named(key, "amount"), (count,), maxval=self.uncertain)
        deviation = latents.std((0, 1, 2, 3), keepdims=True)
        latents = latents + amount[:, None, None, None, None] * deviation * noise
        known = ~jax.random.bernoulli(named(key, "known"), self.drop_plan, (count,))
        return PlanCondition(latents, known)
