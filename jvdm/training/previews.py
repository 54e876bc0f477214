"""What the video model of a running training makes of prompts that it does not see."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import PyTree, TokenIds, UInt8
from jvdm.pipeline import load
from jvdm.training.export import export
from jvdm.training.objective import Objective
from jvdm.weights.package import Packaging
from jvdm.world.captions import caption_text
from jvdm.world.clips import clips
from jvdm.world.scene import World


@dataclasses.dataclass(frozen=True)
class SamplePreview:
    """Clips of held-out prompts, made as `jvdm generate` makes them of the exported weights."""

    package: Packaging
    """How the parameters become weights."""
    count: int = 8

    def render(
        self, objective: Objective, params: PyTree, data: PyTree
    ) -> tuple[UInt8[np.ndarray, "B T h w 3"], list[str]]:
        """Makes the clips; clip `n` has seed `n`."""
        size = self.package.defaults
        world = World(size.height, size.width, size.num_frames, size.fps)
        texts = [caption_text(row) for row in np.asarray(_captions(world, jnp.arange(self.count)))]
        with tempfile.TemporaryDirectory() as folder:
            export(objective, self.package, Path(folder), params)
            pipe = load(Path(folder), progress=False)
            made = [pipe(text, seed=n, progress=False) for n, text in enumerate(texts)]
        return np.stack([video.frames for video in made]), texts


@functools.partial(jax.jit, static_argnums=0)
def _captions(world: World, indices: jax.Array) -> TokenIds:
    return clips(world, "preview", indices, caption_style="full").tokens
