"""ViD-GPT and Ca2-VDM: chunks of frames with the finished ones as a cached prompt.

jvdm stream "a large red ball rolls to the left" --system vid_gpt --duration 20s

Paper: ViD-GPT: Introducing GPT-style Autoregressive Generation in Video Diffusion Models,
arXiv:2406.10981; Ca2-VDM: Efficient Autoregressive Video Diffusion Model with Causal Generation and
Cache Sharing, arXiv:2411.16375.
Claim: long videos of chunks that read all finished frames as a prompt, and are made faster as their
keys and values are cached (the first); one such cache for all steps of a chunk (the second).
Ours: chunks of three latent frames (theirs 8), one after the other, attention that never looks
ahead, not within a chunk either, and a queue of six finished latent frames (theirs 25). A chunk is
shown once more when it is finished, which writes its keys and values. They are kept without
positions, and the oldest of the queue follows the others, so that places stay those of training as
with their cyclic embeddings. Their spatial attention to a prefix and their training, in which
prefixes are perturbed and told to be clean, are not here; `configs/tiny_t2v_causal.py` trains with
clean prefixes.
Gain: a stream of 501 frames of `nano` drifts 1.88 of 255 and keeps .55 of its motion (the wave of
lag 2: 2.22 and 1.00); speed on a GPU was not measured.

jvdm evaluate --weights nano --streams wave ar_diffusion vid_gpt --stream-frames 501
`fvdm` says what the columns are. Two CPU cores that others used too (load 10), jax 0.10.2:

                         calls/chunk  frames/s  seam  borders  drift  motion  PSNR
    wave                           2       322  1.94     1.42   2.22    1.00  26.6
    ar_diffusion                   6       366  2.30     1.39   3.26    0.81  25.8
    vid_gpt                        9       334  2.63     1.45   1.88    0.55  26.3

The seam is the largest of the three and most of the motion is lost, on a network that was trained
with full attention.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix
from jvdm.system import System

CHUNK, KEPT = 3, 6  # latent frames; together the 9 of the shipped model


def system(base: System) -> System:
    """Returns `base` in chunks that read a cache."""
    matrix = CachedMatrix(AutoregressiveMatrix(CHUNK), lookback=KEPT)
    policy = CachedCausal(frames=KEPT, rotary="read")
    sampling = dataclasses.replace(base.sampling, matrix=matrix, policy=policy)
    return dataclasses.replace(base, sampling=sampling)
