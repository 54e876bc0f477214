"""LinGen: scans and shifting windows take the place of full attention, at a linear cost.

jvdm generate "a large red ball rolls to the left" --weights work/lingen/weights --system lingen

Paper: LinGen: Towards High-Resolution Minute-Length Text-to-Video Generation with Linear
Computational Complexity, arXiv:2412.09856.
Claim: up to 15 times fewer operations and 11.5 times less time than a DiT, at a quality that is
preferred in 75.6 % of pairs, and videos of minutes on one GPU. That this is at 68 s of 512 pixels
on an H100, with 4B parameters, is not in its abstract: unverified.
Ours: both branches in every layer of the one network (`scan` and `policy` of `VideoDiT`). The scan
is a bidirectional Mamba2 in four orders by turns; its overview is the means of boxes of tokens,
read first and alone, so that it costs a state and no token. The paper names no sizes of its blocks,
and these are ours. A network without scans runs with its windows alone.
Gain: after 400 steps of equal clips the loss of `configs/lingen.py` on other clips is .440, where
full attention has .509; what mixes tokens is 2.6, 10 and 21 times as fast at 65,536, 262,144 and
524,288 tokens on an H200. Training on long clips was not measured.

.venv/bin/python -m tests.systems.equal_steps lingen 400
Two CPU cores that others shared, jax 0.10.2, 17 minutes: one seed, 1,024 clips of 64 x 64 pixels,
400 steps of 16; the loss is of 256 clips of split `test`, of equal noise and levels, with the
standard error of the difference over draws of these, not over seeds:

                                parameters   loss    more than full
    full attention                 565,664  .5090
    as many parameters             731,552  .5059   -.0032 (+-.0002)
    lingen                         760,250  .4404   -.0686 (+-.0005)
    without review tokens          760,250  .4399   -.0691 (+-.0005)
    without windows                649,466  .4544   -.0547 (+-.0004)
    one order for all layers       760,250  .4489   -.0602 (+-.0004)

This is the beginning of a training, where the paper too finds that its blocks adapt faster; what is
left after a long one is not known. Windows and orders have the paper's sign. Review tokens have
none here: three layers that scan 48 tokens in both directions reach every token without them.

.venv/bin/python -m tests.systems.linear_time 128 2048 8192 16384
What mixes the tokens of a layer of width 128 (a state of 128, windows of 8 x 4 x 4), forward, on
the same cores with a load of ten; `exponent` is of the time by tokens, from the row above:

    tokens    lingen  exponent   full attention  exponent
    2,048     138 ms                   131 ms
    8,192     459 ms       .87        1993 ms       1.96
    16,384    819 ms       .83     not measured

The same of width 1,024 on one H200 (jax 0.11.2, bfloat16, full attention by cuDNN's kernel), in two
runs; the paper's linear cost holds to half a million tokens:

    16,384    4.3 ms               2.8 ms
    65,536    14.6 ms      .88     37.7 ms           1.88
    262,144   60.8 ms     1.03     610 ms            2.01
    524,288   117 ms       .95     2409 ms           1.98

Pitfalls: a scan reads all tokens of a call, so causal and cached attention, and step caches that
run some tokens, are refused beside it. Over devices that share tokens heads are traded, and what
all heads read (`2 state` numbers of a token) is gathered.
"""

import dataclasses

from jvdm.attention import TemporalSwin
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with its own windows; a model that has none gets the paper's branch alone."""
    policy = getattr(base.model, "policy", None)
    policy = policy if isinstance(policy, TemporalSwin) else TemporalSwin()
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=policy))
