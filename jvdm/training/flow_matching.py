"""Flow matching with one noise level per latent frame: how the video model learns."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Key, Latents, NoiseLevels, PyTree
from jvdm.keys import named
from jvdm.samplers.denoiser import Call, ask
from jvdm.samplers.loss_weights import LossWeights, Unweighted
from jvdm.samplers.process import corrupt, from_x0_eps
from jvdm.samplers.space_masks import MaskedPlaces
from jvdm.samplers.timesteps import Synchronous, TimestepSampler
from jvdm.system import System, rules_of
from jvdm.training.objective import TrainCall
from jvdm.weights.package import Component, Components

_LEAST = 1e-6  # frames that count, where none does
_OF_TRAINING = ("remat", "unroll")  # how layers are compiled is no property of the weights


def regression(
    system: System,
    predict: Callable[[Latents, NoiseLevels], Latents],
    latents: Latents,
    rows: TimestepSampler,
    weights: LossWeights,
    key: Key,
    masks: MaskedPlaces | None = None,
) -> Float[Array, ""]:
    """Returns the mean of weighed squared errors over the frames that are trained.

    Places that are given are shown clean and do not count; a frame of nothing else is told so.

    Args:
        system: Whose process and prediction are learnt.
        predict: The network, of noisy latents and their levels.
        latents: Clean ones, standardised.
        rows: Where in a sampling run each clip is trained.
        weights: How much the error of a frame counts.
        key: Key of the step.
        masks: Which places are given; None gives none.
    """
    clean = latents.astype(jnp.float32)
    row = rows(named(key, "rows"), *clean.shape[:2])
    noise = jax.random.normal(named(key, "noise"), clean.shape, jnp.float32)
    counted, made = row.loss_mask, None
    if masks is not None:
        made = masks(named(key, "masks"), *clean.shape[:4])[..., None]
        some = jnp.mean(made, (2, 3, 4), dtype=jnp.float32)
        row, counted = row._replace(t=jnp.where(some > 0, row.t, 0.0)), counted * some
    noised = corrupt(system.process, clean, row.t, noise)
    predicted = predict(noised if made is None else jnp.where(made, noised, clean), row.t)
    error = predicted - from_x0_eps(system.process, system.prediction, clean, noise, row.t)
    error = error if made is None else jnp.where(made, error, 0.0)
    per_frame = jnp.mean(jnp.square(error), (2, 3, 4))
    weight = row.loss_mask * weights(system.process, system.prediction, row.t)
    return jnp.sum(per_frame * weight) / jnp.maximum(jnp.sum(counted), _LEAST)


def some_replaced(told: PyTree, nothing: PyTree, share: float, key: Key) -> PyTree:
    """Replaces what a share of the clips is told by what the empty prompt, a batch of one, is."""
    count = jax.tree.leaves(told)[0].shape[0]
    dropped = jax.random.bernoulli(key, share, (count,))

    def replace(leaf: Array, empty: Array) -> Array:
        return jnp.where(dropped.reshape(-1, *(1,) * (leaf.ndim - 1)), empty, leaf)

    return jax.tree.map(replace, told, nothing)


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """Regression of a system's prediction at random rows of timestep matrices.

    A batch holds `latents [B, F, H, W, C]`, standardised, `tokens`, what the text encoder
    reads, and `actions` i32[B, F] where the world is played. The loss is the squared error,
    averaged over the frames that the row leaves noisy (Lipman et al., arXiv:2210.02747; noise
    level per frame: Chen et al., arXiv:2407.01392).
    """

    system: System
    """Text encoder and network are trained; process and prediction say what they learn."""
    rows: TimestepSampler = Synchronous()
    """Where in a sampling run each clip is trained."""
    drop_text: float = 0.1
    """Share of clips whose prompt is replaced by none, for guidance; of others, the actions."""
    weights: LossWeights = Unweighted()
    """How much the error of a frame counts, by the levels of its clip."""
    masks: MaskedPlaces | None = None
    """Which places of clips are given instead of made; None gives none."""

    def init(self, key: Key) -> PyTree:
        """Returns `{"text": ..., "model": ...}`."""
        return self.system.init_denoiser(key)

    def predict(
        self,
        params: PyTree,
        x: Latents,
        t: NoiseLevels,
        tokens: PyTree,
        actions: Int[Array, "B F"] | None = None,
    ) -> Latents:
        """Returns what the network predicts of `x` at levels `t`."""
        told = self.system.told(params, tokens, actions=actions)
        network = self.system.predict(params, told)
        return ask(network, self.system.process, x, Call.at(t), None)[0]

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the mean of weighed squared errors over the frames that are trained."""
        return self.regressed(functools.partial(self.predict, params), batch, call), {}

    def regressed(
        self, predict: Callable[..., Latents], batch: PyTree, call: TrainCall
    ) -> Float[Array, ""]:
        """Returns the error of a network in the place of this one.

        Args:
            predict: `(x, t, tokens)`, with `actions` where the world is played, to a prediction.
            batch: Clips and what they are told.
            call: Says the key.
        """
        nothing = jax.tree.map(jnp.asarray, self.system.text.read(("",))[0])
        tokens = some_replaced(batch["tokens"], nothing, self.drop_text, named(call.key, "drop"))

        acted = {}
        if "actions" in batch:
            unsaid, silence = jnp.full_like(batch["actions"][:1], -1), named(call.key, "unsaid")
            acted = {"actions": some_replaced(batch["actions"], unsaid, self.drop_text, silence)}

        def network(x: Latents, t: NoiseLevels) -> Latents:
            return predict(x, t, tokens, **acted)

        given = (batch["latents"], self.rows, self.weights, call.key, self.masks)
        return regression(self.system, network, *given)

    def components(self, params: PyTree) -> Components:
        """Returns the text encoder and the network."""
        model, text = self.system.model, self.system.text
        fields = {field.name: field.default for field in dataclasses.fields(model)}
        model = model.clone(**{name: fields[name] for name in _OF_TRAINING if name in fields})
        return {"model": Component(model, params["model"]), "text": Component(text, params["text"])}

    @property
    def rules(self) -> dict:
        """Process, prediction and sampling, for the manifest."""
        return rules_of(self.system)
