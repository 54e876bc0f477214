"""How much still moves where `tiny_t2v` goes on from true films, by latent frame.

python -m tests.systems.continued_motion

Films of one object that rolls or slides away are encoded; some of their latent frames are given and
the next ones made, as a stream makes them, and their change from frame to frame is divided by that
of the true film after its own autoencoder. Windows are of the length that the network was trained
on (9 latent frames) and shorter, at the beginning of the films and 33 frames into them.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.pipeline.request import Given
from jvdm.world.clips import clips
from jvdm.world.scene import PROGRAMMES, World
from jvdm.world.vocabulary import WORDS

LATER = 8  # latent frames before the given ones, in the second half of the table
WINDOWS = ((4, 4), (6, 3), (4, 3))  # given, made
FILMS, FIRST = 3, 10  # of each way; the first index of split `test`
WORLD = World(height=128, width=128, num_frames=4 * (LATER + 8) + 1, supersample=1)


def films() -> tuple[list[str], np.ndarray]:
    """Returns sentences and bytes `[B, T, H, W, 3]` of films that go to the left and right."""

    @jax.jit
    def of(programme):
        indices = FIRST + jnp.arange(FILMS)
        return clips(WORLD, "test", indices, num_objects=1, camera=0, programme=programme)

    made = [of(jnp.int32(PROGRAMMES.index(way))) for way in ("left", "right")]
    tokens = np.concatenate([np.asarray(clip.tokens) for clip in made])
    video = np.concatenate([np.asarray(clip.video) for clip in made])
    sentences = [" ".join(WORDS[token] for token in row if token > 0) for row in tokens]
    return sentences, np.round(255 * np.clip(video, 0, 1)).astype(np.uint8)


def main(steps: int = 8, guidance: float = 1.0) -> None:
    """Prints a row for each window and place."""
    pipe = jvdm.load("tiny_t2v", progress=False)
    sentences, video = films()
    latents = np.asarray(pipe.encode(video))
    true = pipe.decode(latents).astype(np.float32)
    rules = {"num_inference_steps": steps, "guidance_scale": guidance, "progress": False}
    for first in (0, LATER):
        for given, made in WINDOWS:
            known = Given(jnp.asarray(latents[:, first : first + given]), tuple(range(given)))
            frames = 4 * (given + made - 1) + 1
            asked = {"given": (known,), "num_frames": frames, "seed": 100, **rules}
            found = np.asarray(pipe(sentences, output_type="latent", **asked))
            whole = np.concatenate([latents[:, :first], found], 1)
            new = slice(4 * (first + given - 1), 4 * (first + given + made - 1) + 1)
            pair = pipe.decode(whole).astype(np.float32)[:, new], true[:, new]
            change = [np.abs(np.diff(x, axis=1)).mean((0, 2, 3, 4)) for x in pair]
            by_latent = [x.reshape(made, 4).sum(1) for x in change]
            ratios = " ".join(f"{x:.2f}" for x in by_latent[0] / by_latent[1])
            print(f"from latent {first}: {given} given, {made} made: {ratios}", flush=True)


if __name__ == "__main__":
    main()
