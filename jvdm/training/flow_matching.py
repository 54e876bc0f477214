"""Flow matching with one noise level per latent frame: how the video model learns."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Frames, Key, Latents, NoiseLevels, PyTree, TokenIds
from jvdm.keys import named
from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.samplers.denoiser import Call, make_denoiser
from jvdm.samplers.guidance import ClassifierFree, guided
from jvdm.samplers.levels import linspace_levels, shift_levels
from jvdm.samplers.matrices import synchronous
from jvdm.samplers.noise import initial_noise
from jvdm.samplers.process import Process, corrupt, rectified_flow, velocity_target
from jvdm.samplers.sampler import sample
from jvdm.samplers.solvers import solver_named
from jvdm.samplers.timesteps import Synchronous, TimestepSampler
from jvdm.text.words import WordEncoder
from jvdm.training.objective import TrainCall
from jvdm.training.packaging import Packaging, write_package
from jvdm.training.showing import write_rows
from jvdm.vae.latent_space import LatentSpace
from jvdm.vae.video_vae import VideoVAE
from jvdm.world.captions import caption_text
from jvdm.world.clips import clips
from jvdm.world.scene import World

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
    vae: VideoVAE
    """The autoencoder behind the latents, for sample sheets."""
    packaging: Packaging
    rows: TimestepSampler = Synchronous()
    """Where in a sampling run each clip is trained."""
    process: Process = rectified_flow()
    """How noise is mixed in."""
    drop_text: float = 0.1
    """Share of clips whose prompt is replaced by none, for guidance."""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of one clip of latents."""
        size = self.packaging.defaults
        height, width = self.vae.latent_size(size.height, size.width)
        return self.vae.latent_frames(size.num_frames), height, width, self.vae.latent_channels

    def init(self, key: Key) -> PyTree:
        """Returns `{"text": ..., "dit": ...}`."""
        ids = jnp.zeros((1, self.text.max_tokens), jnp.int32)
        text = self.text.init(named(key, "text"), ids)["params"]
        latents = jnp.zeros((1, *self.latent_shape))
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
        return jnp.where(dropped, _null_like(tokens), tokens)

    def flops_per_step(self, batch_size: int) -> float:
        """Returns three forward passes of the video model over the batch."""
        frames, height, width, _ = self.latent_shape
        forward = self.model.flops(frames, height, width, self.text.max_tokens)
        return 3.0 * batch_size * forward

    def sheet(self, params: PyTree, data: PyTree, path: Path) -> None:
        """Writes clips for eight prompts that training does not see; `data.space` decodes."""
        defaults = self.packaging.defaults
        world = World(defaults.height, defaults.width, defaults.num_frames, defaults.fps)
        captions = jax.jit(lambda i: clips(world, "preview", i, caption_style="full").tokens)
        tokens = captions(jnp.arange(8))
        frames = jax.jit(self._generate)(params, data.space, tokens, jax.random.key(0))
        write_rows(path, np.asarray(frames), [caption_text(row) for row in np.asarray(tokens)])

    def _generate(self, params: PyTree, space: LatentSpace, tokens: TokenIds, key: Key) -> Frames:
        defaults, count = self.packaging.defaults, tokens.shape[0]
        prompts = jnp.concatenate([_null_like(tokens), tokens])

        def predict(x, call, carry):
            return self.predict(params, x, call.t, prompts), carry

        both = make_denoiser(predict, self.process, "velocity")
        rule = ClassifierFree(defaults.guidance_scale)
        denoise = guided(rule, lambda names: both, self.process)
        frames, *cells = self.latent_shape
        levels = shift_levels(linspace_levels(defaults.num_inference_steps), defaults.shift)
        noise = initial_noise(key, jnp.arange(count), frames, tuple(cells))
        solver, matrix = solver_named(defaults.solver), synchronous(levels, frames)
        end = sample(denoise, solver, self.process, matrix, noise, key)
        return self.vae.bind({"params": space.params}).decode(space.restore(end.x))

    def export(self, params: PyTree, data: PyTree, folder: Path) -> None:
        """Writes `dit.safetensors`, which holds the text encoder too, and the manifest."""
        # How layers are compiled for training is no property of the weights.
        model = self.model.clone(unroll=VideoDiT.unroll, remat=VideoDiT.remat)
        modules = {"dit": model, "text": self.text}
        write_package(folder, self.packaging, {"dit": params}, modules)


def _null_like(tokens: TokenIds) -> TokenIds:
    return jnp.zeros_like(tokens).at[:, 0].set(NULL)
