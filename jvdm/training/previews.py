"""What the video model of a running training makes of prompts that it does not see."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Frames, Key, PyTree, TokenIds
from jvdm.samplers.denoiser import make_denoiser
from jvdm.samplers.guidance import ClassifierFree, guided
from jvdm.samplers.levels import linspace_levels, shift_levels
from jvdm.samplers.matrices import synchronous
from jvdm.samplers.noise import initial_noise
from jvdm.samplers.sampler import sample
from jvdm.samplers.solvers import solver_named
from jvdm.training.flow_matching import FlowMatching, null_like
from jvdm.vae.latent_space import LatentSpace
from jvdm.vae.video_vae import VideoVAE
from jvdm.weights.folder import Defaults
from jvdm.world.captions import caption_text
from jvdm.world.clips import clips
from jvdm.world.scene import World


@dataclasses.dataclass(frozen=True)
class SamplePreview:
    """Clips of held-out prompts; the source's `data.space` decodes them."""

    vae: VideoVAE
    defaults: Defaults
    """Sizes and settings of the clips."""
    count: int = 8

    def render(
        self, objective: FlowMatching, params: PyTree, data: PyTree
    ) -> tuple[Frames, list[str]]:
        """Samples the clips with noise of seed 0."""
        size = self.defaults
        world = World(size.height, size.width, size.num_frames, size.fps)
        tokens = _captions(world, jnp.arange(self.count))
        generate = jax.jit(functools.partial(self._generate, objective))
        frames = generate(params, data.space, tokens, jax.random.key(0))
        return frames, [caption_text(row) for row in np.asarray(tokens)]

    def _generate(
        self,
        objective: FlowMatching,
        params: PyTree,
        space: LatentSpace,
        tokens: TokenIds,
        key: Key,
    ) -> Frames:
        size, process = self.defaults, objective.process
        prompts = jnp.concatenate([null_like(tokens), tokens])

        def predict(x, call, carry):
            return objective.predict(params, x, call.t, prompts), carry

        both = make_denoiser(predict, process, "velocity")
        denoise = guided(ClassifierFree(size.guidance_scale), lambda names: both, process)
        frames = self.vae.latent_frames(size.num_frames)
        cells = (*self.vae.latent_size(size.height, size.width), self.vae.latent_channels)
        levels = shift_levels(linspace_levels(size.num_inference_steps), size.shift)
        noise = initial_noise(key, jnp.arange(len(tokens)), frames, cells)
        solver, matrix = solver_named(size.solver), synchronous(levels, frames)
        end = sample(denoise, solver, process, matrix, noise, key)
        return self.vae.bind({"params": space.params}).decode(space.restore(end.x))


@functools.partial(jax.jit, static_argnums=0)
def _captions(world: World, indices: jax.Array) -> TokenIds:
    return clips(world, "preview", indices, caption_style="full").tokens
