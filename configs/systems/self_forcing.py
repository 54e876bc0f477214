"""Self-Forcing: a few steps for each latent frame, behind frames that the model made itself.

jvdm stream "a large red ball rests" --weights work/self_forcing/weights --duration 10s

Paper: Self Forcing: Bridging the Train-Test Gap in Autoregressive Video Diffusion,
arXiv:2506.08009.
Claim: streams in real time on one GPU with less than a second of delay, at least as good as slower
models that are not causal.
Ours: the rows (a latent frame is finished in four steps before the next begins, noised anew after
each), the cache of keys and values that a row of its own writes, and the training on what the
student made (`jvdm.training.distribution_matching`): runs are left at a random step, the gradient
goes through that call alone and not through the cache, and the law of what was made is compared
with that of the guided teacher. Frames of a chunk: ours 1 of 3 in a clip of nano, theirs 3 of 21.
Not here: their adversarial and SiD losses, and the regression of pairs of noise and film that they
begin with; ours begins as a causal model behind true frames, as Causal Forcing says.
Gain: not measured yet.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix, ShiftedLevels, Unguided
from jvdm.samplers.solvers import Consistency
from jvdm.system import System

BLOCK, KEPT = 1, 2  # latent frames of a chunk, and of those before it that are read
STEPS, SHIFT = 4, 5.0  # of a chunk, and what their levels are shifted by


def system(base: System) -> System:
    """Returns `base` chunk by chunk in few steps without guidance, with a cache."""
    sampling = dataclasses.replace(
        base.sampling,
        levels=ShiftedLevels(STEPS, SHIFT),
        matrix=CachedMatrix(AutoregressiveMatrix(BLOCK), lookback=KEPT),
        solver=Consistency(),
        guidance=Unguided(),
        policy=CachedCausal(KEPT, block=BLOCK, rotary="read"),
    )
    return dataclasses.replace(base, sampling=sampling)
