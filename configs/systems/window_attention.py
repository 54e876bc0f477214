"""Sliding tile attention: a patch attends to the patches around it, in space and time.

jvdm generate "a large red ball rolls to the left" --system window_attention --density 0.25

Paper: Fast Video Generation with Sliding Tile Attention, arXiv:2502.04507.
Claim: HunyuanVideo in 501 s instead of 945 without loss and without training, by windows searched
per head, and in 268 s when tuned for it, at .09 % less of VBench; here is neither.
Ours: a box of patches around each, moved inwards at borders so that all see equally many;
`--sampling.policy.shifted True` takes windows that shift (arXiv:2103.14030). The lists are
constants: nothing is computed to choose them. Windows of their own for every head are found by the
search of `sparse_vdit`, whose policy then has them.
Gain: none without training on `nano`: at density .25 PSNR 17.9 dB to dense, random blocks 26.5;
windows by head, at .5, 31.5, the best window for all heads 27.7, random blocks 32.4.

jvdm attention --weights nano --height 128 --width 128 --block 4
Measured as `draft_attention` was, in one run with it; its table holds the windows too.

jvdm attention --weights nano --height 128 --width 128 --block 4 --search sparse_vdit
    --patterns window tube plane
jvdm generate PROMPT --weights nano --height 128 --width 128 --system sparse_vdit
    --sampling.policy.table out/policies/patterns.json
Each head has nothing, all, or a box of the grid's proportions, through all frames, or in its own
frame. Measured as `sparse_vdit` was (`python -m tests.systems.pattern_tables`), on two cores that
others shared, PSNR in dB and SSIM; a plane has a third of the blocks at most:

    density                       0.75         0.5          0.35         0.25
    windows by head               34.8 .967    31.5 .928    27.2 .858    25.3 .793
    its windows, heads at random  24.2-31.4    22.6-31.5    22.8-27.2    18.8-25.1
    a window in all heads         27.6 .896    27.6 .878    18.2 .563
    a tube                        27.6 .896    18.3 .579    17.9 .507
    a plane                       27.7 .875    27.7 .875    27.7 .875

So heads want windows of their own, as the paper says. At .5 two of six have planes, three tubes.

Windows do worse than random blocks on a model that was not trained with them: what lies
outside is never seen, while random blocks change from row to row. Recall of the two sparse layers:
.61 .56, .50 .49, .32 .35. A model of one's own is trained with `Window` as the policy of its
network. `tiny_t2v` at four times its tokens (`jvdm attention`) has not been measured yet.
"""

import dataclasses

from jvdm.attention import Window
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with windows of a quarter of its tokens after the first rows."""
    policy = Window(density=0.25, dense_rows=0.25, dense_layers=1)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=policy))
