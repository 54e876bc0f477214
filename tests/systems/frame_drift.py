"""How films of art_v drift away from what stays the same: the table of the system.

python -m tests.systems.frame_drift STEPS GUIDANCE WEIGHTS[:told=NUMBER]...

Each WEIGHTS are those of `configs/art_v.py` or of one of its ablations. Films of the world with a
camera that rests are gone on with from their first latent frame alone. Where the true film does not
change, what is made should not either: `error` is the mean distance there, in levels of 255, to the
true film after its own autoencoder, at the beginning and the end of 64 frames. `motion` is the
change from frame to frame elsewhere over that of the true film: 0 is a picture that is frozen.
`copied` is the mean of the mask at noise level `LEVEL` behind true frames, in cells that are still
and in others. A number beside WEIGHTS is the level that finished frames are told.
"""

import dataclasses
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.pipeline.request import Given
from jvdm.samplers import Call, Stabilised
from jvdm.samplers.process import corrupt
from jvdm.world.clips import clips
from jvdm.world.scene import World
from jvdm.world.vocabulary import WORDS

FILMS, FIRST, MADE = 24, 100, 64  # films, index of the first in split `test`, frames made
WINDOWS = {"frames 1-8": slice(1, 9), "29-36": slice(29, 37), "57-64": slice(57, 65)}
LEVEL = 0.5
STILL = 1 / 255  # most that a place of the true film changes that counts as one that does not


def films(first: int = FIRST) -> tuple[list[str], np.ndarray]:
    """Returns sentences and bytes of true films `[B, 65, 64, 64, 3]` from one of the split on."""
    world = World(height=64, width=64, num_frames=MADE + 1, fps=6.0, substeps=12)
    render = jax.jit(lambda: clips(world, "test", first + jnp.arange(FILMS), camera=0))
    clip = render()
    sentences = [
        " ".join(WORDS[token] for token in row if token > 0) for row in np.asarray(clip.tokens)
    ]
    return sentences, np.round(255 * np.clip(np.asarray(clip.video), 0, 1)).astype(np.uint8)


def row_of(made: np.ndarray, true: np.ndarray, still: np.ndarray) -> dict[str, float]:
    """Returns the columns of films `made`, `[B, T, H, W, 3]` in levels; `still` is `[B, H, W]`."""
    away = np.abs(made - true).mean(-1)
    found = {}
    for name, frames in WINDOWS.items():
        place = np.broadcast_to(still[:, None], away[:, frames].shape)
        found[name] = float(away[:, frames][place].mean())
    change = [np.abs(np.diff(video, axis=1)).mean(-1) for video in (made, true)]
    moving = np.broadcast_to(~still[:, None], change[0].shape)
    found["motion"] = float(change[0][moving].sum() / change[1][moving].sum())
    return found


def copied(pipe: Any, sentences: list[str], latents: np.ndarray, still: np.ndarray) -> str:
    """Returns the mean mask: how little the velocity is the network's own, by what is copied."""
    system, model = pipe.system, pipe.system.model
    clean, t = jnp.asarray(latents), jnp.full(latents.shape[:2], LEVEL)
    told = system.told(pipe.params, jnp.asarray(system.text.read(tuple(sentences))[0]))
    noise = jax.random.normal(jax.random.key(0), clean.shape)
    shown = model.references(clean, jnp.zeros_like(t), clean[:, :1], jnp.zeros_like(t[:, :1]))
    given = (corrupt(system.process, clean, t, noise), Call.at(t), told)

    @jax.jit
    def said(params: Any, references: Any) -> Any:
        return model.apply({"params": params}, *given, references, method="beside")[0]

    moved = (shown, shown._replace(copied=shown.copied + 1.0))
    one, other = (np.asarray(said(pipe.params["model"], shown)) for shown in moved)
    mask = LEVEL * (one - other)[:, 1:].mean(-1)
    rows, columns = mask.shape[2:]
    cells = still.reshape(len(still), rows, -1, columns, still.shape[2] // columns)
    cells = np.broadcast_to(np.all(cells, axis=(2, 4))[:, None], mask.shape)
    return f"copied {mask[cells].mean():.2f} and {mask[~cells].mean():.2f}"


def main(steps: int, guidance: float, folders: list[str]) -> None:
    """Prints a row for each weights folder."""
    sentences, video = films()
    still = (np.ptp(video.astype(np.int32), axis=1) <= 255 * STILL).all(-1)
    rules: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
    rules |= {"num_frames": MADE + 1, "seed": 100, "progress": False, "output_type": "latent"}
    print(f"{still.mean():.2f} of the places of {FILMS} films never change", flush=True)
    for named in folders:
        folder, _, told = named.partition(":told=")
        pipe = jvdm.load(folder, system="art_v", progress=False)
        if told:
            sampling = dataclasses.replace(pipe.system.sampling, context=Stabilised(float(told)))
            system = dataclasses.replace(pipe.system, sampling=sampling)
            pipe = dataclasses.replace(pipe, system=system)
        latents = np.asarray(pipe.encode(video))
        true = pipe.decode(latents).astype(np.float32)
        known = Given(jnp.asarray(latents[:, :1]), (0,))
        made = pipe.decode(np.asarray(pipe(sentences, given=(known,), **rules)))
        row = row_of(made.astype(np.float32), true, still)
        cells = [f"{key} {x:.2f}" for key, x in row.items()]
        print(f"{named:<28}", *cells, copied(pipe, sentences, latents, still), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "65 frames are more")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
