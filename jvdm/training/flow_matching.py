"""Flow matching with one noise level per latent frame: how the video model learns."""

import dataclasses

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Key, Latents, NoiseLevels, PyTree, TokenIds
from jvdm.keys import named
from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.samplers.denoiser import Call
from jvdm.samplers.process import Process, corrupt, rectified_flow, velocity_target
from jvdm.samplers.timesteps import Synchronous, TimestepSampler
from jvdm.text.words import WordEncoder
from jvdm.training.objective import TrainCall
from jvdm.weights.package import Component, Files

NULL = 1
"""Token that stands for 'no prompt' (`jvdm.world.vocabulary`)."""


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """Velocity regression at random rows of timestep matrices.

    A batch holds `latents [B, F, H, W, C]`, standardised, and `tokens [B, L]`.
    The loss is the squared error of the velocity, averaged over the frames that
    the row leaves noisy (Lipman et al., arXiv:2210.02747; noise level per frame:
    Chen et al., arXiv:2407.01392).
    """

    model: VideoDiT
    text: WordEncoder
    rows: TimestepSampler = Synchronous()
    """Where in a sampling run each clip is trained."""
    process: Process = rectified_flow()
    """How noise is mixed in."""
    drop_text: float = 0.1
    """Share of clips whose prompt is replaced by none, for guidance."""

    def init(self, key: Key) -> PyTree:
        """Returns `{"text": ..., "dit": ...}`."""
        ids = jnp.zeros((1, self.text.max_tokens), jnp.int32)
        text = self.text.init(named(key, "text"), ids)["params"]
        latents = jnp.zeros((1, 1, self.model.patch, self.model.patch, self.model.latent_channels))
        states = TextStates(*self.text.bind({"params": text})(ids))
        arguments = (latents, Call.at(latents[..., 0, 0, 0]), Conditions(states))
        return {"text": text, "dit": self.model.init(named(key, "dit"), *arguments)["params"]}

    def predict(self, params: PyTree, x: Latents, t: NoiseLevels, tokens: TokenIds) -> Latents:
        """Returns the velocity of `x` at levels `t` for prompts `tokens`."""
        states = TextStates(*self.text.bind({"params": params["text"]})(tokens))
        velocity, _ = self.model.bind({"params": params["dit"]})(x, Call.at(t), Conditions(states))
        return velocity

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the mean squared error over the frames that are trained."""
        clean = batch["latents"].astype(jnp.float32)
        count, frames = clean.shape[:2]
        row = self.rows(named(call.key, "rows"), count, frames)
        noise = jax.random.normal(named(call.key, "noise"), clean.shape, jnp.float32)
        tokens = self._drop(batch["tokens"], named(call.key, "drop"))
        noisy = corrupt(self.process, clean, row.t, noise)
        velocity = self.predict(params, noisy, row.t, tokens)
        error = velocity - velocity_target(self.process, clean, row.t, noise)
        per_frame = jnp.mean(jnp.square(error), (2, 3, 4))
        loss = jnp.sum(per_frame * row.loss_mask) / jnp.maximum(jnp.sum(row.loss_mask), 1.0)
        return loss, {}

    def _drop(self, tokens: TokenIds, key: Key) -> TokenIds:
        dropped = jax.random.bernoulli(key, self.drop_text, (tokens.shape[0], 1))
        return jnp.where(dropped, null_like(tokens), tokens)

    def components(self, params: PyTree) -> Files:
        """Returns `dit.safetensors`, which holds the text encoder too."""
        # How layers are compiled for training is no property of the weights.
        model = self.model.clone(unroll=VideoDiT.unroll, remat=VideoDiT.remat)
        parts = {"dit": (model, params["dit"]), "text": (self.text, params["text"])}
        return {"dit": {name: Component(*part) for name, part in parts.items()}}


def null_like(tokens: TokenIds) -> TokenIds:
    """Returns the tokens of no prompt in the shape of `tokens`."""
    return jnp.zeros_like(tokens).at[:, 0].set(NULL)
