"""Training of a network of single frames: all frames of a clip at once, each beside true ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Latents, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.models.low_rank import variables
from jvdm.samplers.denoiser import Call, ask
from jvdm.samplers.process import corrupt
from jvdm.samplers.timesteps import Independent, TimestepSampler
from jvdm.training.flow_matching import FlowMatching, regression, some_replaced
from jvdm.training.objective import TrainCall


@dataclasses.dataclass(frozen=True)
class NextFrameMatching(FlowMatching):
    """Flow matching of `jvdm.models.next_frame`: a frame's references are those of the true clip.

    They are noised to a level of the clip, drawn evenly up to `augmentation`, and the network is
    told it, so that the errors of a film that is made look like what it was trained on; what it
    copies is not noised (ART.V, arXiv:2311.18834, noise augmentation).

    Raises:
        ConfigError: If the level is none, or the network is not one of single frames.
    """

    rows: TimestepSampler = Independent()
    augmentation: float = 0.2
    """Highest noise level of references; 0 shows them as they are."""

    def __post_init__(self) -> None:
        """Refuses what cannot be trained so."""
        if not 0 <= self.augmentation < 1:
            what = f"--objective.augmentation is {self.augmentation:g}"
            raise ConfigError(what, "at 1 nothing would be seen of a frame", "use 0 to 0.5")
        if not hasattr(self.system.model, "beside"):
            what = f"single frames were to be trained with {type(self.system.model).__name__}"
            raise ConfigError(what, "it is shown no references", "use a NextFrameDiT")

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the mean of weighed squared errors over all frames."""
        system = self.system
        nothing = jax.tree.map(jnp.asarray, system.text.read(("",))[0])
        tokens = some_replaced(batch["tokens"], nothing, self.drop_text, named(call.key, "drop"))
        told = system.told(params, tokens)
        clean = batch["latents"].astype(jnp.float32)
        key, shape = named(call.key, "references"), clean.shape
        drawn = jax.random.uniform(named(key, "level"), (shape[0], 1), maxval=self.augmentation)
        levels = jnp.broadcast_to(drawn, shape[:2])
        noise = jax.random.normal(named(key, "noise"), shape, jnp.float32)
        shown = corrupt(system.process, clean, levels, noise)
        network: Any = system.network
        earlier = (levels, shown[:, :1], levels[:, :1])
        references = network.references(shown, *earlier)
        true = network.references(clean, jnp.zeros_like(levels), *earlier[1:])
        references = references._replace(copied=true.copied)

        def predict(x: Latents, t: NoiseLevels) -> Latents:
            def beside(x: Latents, call: Call, carry: PyTree) -> tuple[Latents, PyTree]:
                given = (x, call, told, references)
                out = network.apply(variables(params["model"]), *given, method="beside")
                return out[0], carry

            return ask(beside, system.process, x, Call.at(t), None)[0]

        given = (batch["latents"], self.rows, self.weights, call.key)
        return regression(system, predict, *given), {}
