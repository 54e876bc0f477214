"""DyDiT++: routers say by noise level and token what of a network counts, and the rest is not run.

jvdm generate "a large red ball rolls to the left" --weights work/dydit/weights --system dydit

Paper: DyDiT++: Dynamic Diffusion Transformers for Efficient Visual Generation, arXiv:2504.06803.
Claim: DiT-XL at half of its operations has an FID of 2.07 instead of 2.27, after 200,000 steps of
fine-tuning (the first paper, arXiv:2410.03456); this one adds flow matching and videos.
Ours: a part of the one network (`dynamic` of `VideoDiT`). Routers of each layer read the level of
each frame, so frames of a call have widths of their own: a head or a group of channels is left out
of a program where no frame of the call needs it, and masked in the frames that do not. Rows have a
program for each bucket of widths, known from their levels before they run. The MLP leaves tokens
out, and whole frames by the mean of their tokens (temporal gates; how theirs look is not in the
published code): the tokens of the highest scores are gathered, three quarters of them here.
A network without routers is refused.
Gain: a program of two of three heads and half of the channels has .65 of the operations of a call
and takes .59 of the time (`nano`, 256 x 256, two CPU cores). Short training does not keep quality:
after 400 steps the loss of `nano` is .509 at .76 of the operations, .377 with all of them, .461 at
.69 where parts are left out once for all.

.venv/bin/python -m tests.systems.dynamic_width programs nano 256 256
A call of two videos of 768 tokens, layers unrolled, the least of 15 times by turns, on two cores
that others shared (load 7), jax 0.10.2; the routers are in all rows but the first:

                                 operations   time
    without routers                    1.00   1.00
    3 heads, 6 groups of 8              .94   1.01
    2 heads, 4 groups                   .65    .59
    1 head, 2 groups                    .37    .35
    3 heads, 6 groups, 1/2 of tokens    .84   1.07

.venv/bin/python -m tests.systems.dynamic_width losses 400
The shipped nano model trained on for 400 steps of 16 from 1,024 clips, two cores that others shared
(jax 0.10.2, 23 minutes): loss on 256 clips of split `test` at even levels, how far it is above that
of full width (standard error over draws .0002 to .0004, one seed), and the share of the operations
of the layers when gates have no noise, from clean to noise:

                        share   at levels .06 to .94             loss   more
    full width           1.00                                    .377
    dydit                 .76   .79 .88 .85 .82 .77 .70 .66 .61  .509   .132
    width alone           .74   .87 .91 .82 .76 .67 .65 .63 .63  .488   .112
    tokens and frames     .75   .83 .87 .83 .79 .74 .69 .64 .59  .496   .119
    tokens alone          .75   .84 .84 .81 .77 .74 .70 .66 .62  .485   .108
    pruned once for all   .69   .69 at every level               .461   .084
    dydit, target .5      .55   .51 .61 .61 .61 .53 .51 .50 .47  .633   .257

After 250 steps `dydit` had .555 at .77, full width .379: training helps, and is not at its end.
That less is computed near noise is the paper's; its order is not here. There each router helps and
all beat pruning by weights; here each one alone is better than all, frames that are left out cost
.012 more than tokens alone, and pruning by the sizes of weights beats every router at fewer
operations. Likely reasons, which were not tested: a head is a third of a layer here, what is pruned
adapts from the first step while routers still draw, and nothing of so small a network is spare.
Other settings did not help: everything at a rate of 2e-4 but routers (2e-3), a weight of 20, noise
of .2, a bias of 4 and a temperature of 5 had .612 at .81 after 250 steps. Long training and GPUs
were not measured.

Combinations: a row runs all heads beside attention that is not full, whose lists and states are
those of all heads, and still leaves channels and tokens out. Step caches go with routers, but not
`regions`, which runs some tokens: frames are left out by the mean of all. For the same reason a
mesh that splits tokens is refused; `data`, `fsdp`, `tensor` and `branch` are not. Rows of streams
mask, as one program makes all of them, and gather.

Pitfalls: gates that are drawn let through what those without noise do not, and the other way round;
with the noise as published a short run reached the target in training and closed nothing when
videos were made. Published sampling multiplies by masks, which saves no time. TD-LoRA is not here.
"""

import dataclasses
from typing import Any

from jvdm.recipes import require_trained
from jvdm.system import System

CAPACITY = 0.75  # share of tokens that the MLP runs, where the network does not say


def system(base: System) -> System:
    """Returns `base` with a capacity of tokens.

    Raises:
        ConfigError: If its network has no routers, which say what is left out.
    """
    rule: Any = getattr(base.model, "dynamic", None)
    require_trained("dydit", rule is not None, "have no routers", "they say what is left out")
    chooses = rule.tokens or rule.frames
    capacity = CAPACITY if rule.capacity is None and chooses else rule.capacity
    rule = dataclasses.replace(rule, complete=False, capacity=capacity)
    return dataclasses.replace(base, model=base.model.clone(dynamic=rule))
