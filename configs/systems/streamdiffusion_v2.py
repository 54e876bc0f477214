"""StreamDiffusion V2: a video is changed while it comes, with a cache of keys for each noise level.

jvdm generate "a large blue box slides to the left" --system streamdiffusion_v2 --video clip.mp4

Paper: StreamDiffusionV2: A Streaming System for Dynamic and Interactive Video Generation,
arXiv:2511.07399.
Claim: 58 frames a second with 14B parameters on four H100, the first one after half a second.
Ours: a wave of single latent frames one row apart, four in work, each in the batch at a level of
its own and with a cache of its own: six latent frames, three of them a sink that is refreshed where
the scene changes. Levels are 700, 500, 400 and 200 of 1000, and the first falls with the motion of
the video. Keys turn when they are read: theirs, turned when they are written, stand 40 frames in
the future for three frames where their count begins anew. Without their training (CausVid) and
their division of the layers among devices by measured time.
Gain: of 8 pairs of films of the world, a cut between them, edited by `nano`, which was not trained
causally, a cache for each level needs 1.1 calls and 4.5 frames of the network for a latent frame,
one of finished frames, as large, 2.1 and 8.4. Films are as near the given ones (23.6 and 23.4 dB)
and the run of all frames together (36.2 and 37.1 dB), in 89 frames. At the cut nothing of `nano` or
`tiny_t2v` is less alike than .7, so that the sink is refreshed below .85 only, with no gain (22.8
dB to the given film in the eight frames after it, both ways), as are levels that follow the motion
(22.8 and 22.9).

python -m tests.systems.level_banks 8 nano 0.85
Two busy CPU cores, jax 0.10.2. In streams of `nano` that take turns, without guidance, a chunk of
four frames takes 11.5 ms, with the other cache 12.1 (medians of 27): a call of `nano` is too small
for calls to matter. On a GPU nothing was measured.
"""

import dataclasses

from jvdm.attention import LevelBank
from jvdm.samplers import CachedMatrix, LagMatrix, MotionLevels, Unguided
from jvdm.samplers.solvers import Consistency
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` as an editor of videos whose frames read the past at their own levels."""
    levels = MotionLevels()
    sampling = dataclasses.replace(
        base.sampling,
        levels=levels,
        matrix=CachedMatrix(LagMatrix(1), lookback=3, by_level=True),
        solver=Consistency(),
        guidance=Unguided(),
        policy=LevelBank(levels.num_steps, frames=6, sink=3),
    )
    return dataclasses.replace(base, sampling=sampling)
