"""LinGen: scans and shifting windows take the place of full attention, at a linear cost.

jvdm generate "a large red ball rolls to the left" --weights work/lingen/weights --system lingen

Paper: LinGen: Towards High-Resolution Minute-Length Text-to-Video Generation with Linear
Computational Complexity, arXiv:2412.09856.
Claim: up to 15 times fewer operations than a DiT of 4B parameters and 11.5 times less time at 68 s
of 512 pixels on one H100, at a quality that people prefer in 75.6 % of pairs.
Ours: both branches in every layer of the one network (`scan` and `policy` of `VideoDiT`). The scan
is a bidirectional Mamba2 in four orders by turns; its overview is the means of boxes of tokens,
read first and alone, so that it costs a state and no token. The paper names no sizes of its blocks,
and these are ours. A network without scans runs with its windows alone.
Gain: not measured yet.
"""

import dataclasses

from jvdm.attention import TemporalSwin
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with its own windows; a model that has none gets the paper's branch alone."""
    policy = getattr(base.model, "policy", None)
    policy = policy if isinstance(policy, TemporalSwin) else TemporalSwin()
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=policy))
