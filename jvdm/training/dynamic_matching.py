"""Flow matching of a network with routers that must not compute more than a share (DyDiT++)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Latents, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.models.dynamic_width import layer_costs
from jvdm.models.low_rank import variables
from jvdm.models.stack import GATES
from jvdm.samplers.denoiser import Call, ask
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.objective import TrainCall


@dataclasses.dataclass(frozen=True)
class DynamicMatching(FlowMatching):
    """Flow matching under gates that are drawn, and of the complete network at first.

    `L = L(gated) + L(complete) + weight (mean share - target)^2`, where the share of a clip is what
    its layers compute of all that they could, each frame counted with its own width. The target
    falls from 1. Both losses see the same noise and levels.

    Attributes:
        target: Share of the operations of the layers that is reached, above 0 up to 1.
        full_steps: Steps with a target of 1.
        falling_steps: Steps after these in which the target falls to its value.
        weight: Of the distance to the target.
        complete_steps: Steps with the loss of the complete network, which costs a second pass.

    Reference: Zhao et al., DyDiT, arXiv:2410.03456, section 3.3; numbers are those of its code.

    Raises:
        ConfigError: If a number is outside of its range, or the network has no routers.
    """

    target: float = 0.7
    full_steps: int = 100
    falling_steps: int = 1000
    weight: float = 2.0
    complete_steps: int = 30_000

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            what = f"a target of {self.target:g}"
            raise ConfigError(what, "it is a share of operations", "use a number above 0, up to 1")
        if min(self.full_steps, self.falling_steps, self.complete_steps, self.weight) < 0:
            raise ConfigError("steps or a weight below 0", "they count", "use 0 or more")
        if getattr(self.system.model, "dynamic", None) is None:
            what, why = "routers to be trained", f"{type(self.system.model).__name__} has none"
            raise ConfigError(what, why, "use a VideoDiT with dynamic=DynamicWidth()")

    def aim(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the target of a step."""
        fallen = (step - self.full_steps) / max(self.falling_steps, 1)
        return 1.0 - (1.0 - self.target) * jnp.clip(fallen, 0.0, 1.0)

    @property
    def passes(self) -> float:
        """Once forward and twice backward, of two networks."""
        return 6.0

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the loss, and of it: `share` computed, `aim`, `gated` and `complete` errors."""
        found: list[Array] = []

        def gated(*inputs: Any, **acted: Any) -> Latents:
            predicted, spent = self.drawn(params, named(call.key, "gates"), *inputs, **acted)
            found.append(spent)
            return predicted

        error = self.regressed(gated, batch, call)
        share, aim = self.share(found[0], batch["latents"]).mean(), self.aim(call.step)
        model = self.system.model
        rule = dataclasses.replace(model.dynamic, complete=True)
        system = dataclasses.replace(self.system, model=model.clone(dynamic=rule))
        whole = FlowMatching(**_fields(self) | {"system": system})

        def complete() -> Array:
            return whole.regressed(functools.partial(whole.predict, params), batch, call)

        taught = jax.lax.cond(call.step < self.complete_steps, complete, lambda: jnp.zeros(()))
        metrics = {"share": share, "aim": aim, "gated": error, "complete": taught}
        return error + taught + self.weight * jnp.square(share - aim), metrics

    def drawn(
        self,
        params: PyTree,
        key: Array,
        x: Latents,
        t: NoiseLevels,
        tokens: PyTree,
        actions: Array | None = None,
    ) -> tuple[Latents, Float[Array, "depth 2 B"]]:
        """Returns what the network predicts under gates drawn with `key`, and what they spent."""
        told = self.system.told(params, tokens, actions=actions)

        def network(x: Latents, call: Call, carry: PyTree) -> tuple[Latents, PyTree]:
            given = (variables(params["model"]), x, call, told, carry)
            (out, _), said = self.system.network.apply(*given, rngs={GATES: key}, mutable=[GATES])
            return out, said[GATES]["layers"]["spent"][0]

        return ask(network, self.system.process, x, Call.at(t), None)

    def share(self, spent: Float[Array, "depth 2 B"], latents: Latents) -> Float[Array, " B"]:
        """Returns the share of the operations of all layers that each clip takes.

        Raises:
            ConfigError: If what always counts is more than the target.
        """
        model = self.system.model
        cells = latents.shape[1] * latents.shape[2] * latents.shape[3]
        attention, mlp, rest = layer_costs(model, cells // model.patch**2)
        whole = attention + mlp + rest
        rule, heads = model.dynamic, model.width // model.head_dim
        least = rest + (attention / heads if rule.timestep else attention)
        if not (rule.timestep or rule.tokens or rule.frames):
            least += mlp
        if self.target < least / whole:
            what = f"a target of {self.target:g}"
            why = f"{least / whole:.2f} of the operations are those that always count"
            raise ConfigError(what, why, "use a greater one")
        return (attention * spent[:, 0] + mlp * spent[:, 1] + rest).mean(0) / whole


def _fields(objective: FlowMatching) -> dict[str, Any]:
    """Returns what plain flow matching has of an objective."""
    return {
        field.name: getattr(objective, field.name) for field in dataclasses.fields(FlowMatching)
    }
