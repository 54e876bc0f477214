"""Sliding tile attention: a patch attends to the patches around it, in space and time.

jvdm generate "a large red ball rolls to the left" --system window_attention --density 0.25

Paper: Fast Video Generation with Sliding Tile Attention, arXiv:2502.04507.
Claim: HunyuanVideo in 501 s instead of 945 without loss and without training, by windows searched
per head, and in 268 s when tuned for it, at .09 % less of VBench; here is neither.
Ours: a box of patches around each, moved inwards at borders so that all see equally many;
`--sampling.policy.shifted True` takes windows that shift (arXiv:2103.14030). The lists are
constants: nothing is computed to choose them.
Gain: none without training: at density .25 PSNR 17.9 dB to dense on `nano`, random blocks 26.5.

jvdm attention --weights nano --height 128 --width 128 --block 4
Measured as `draft_attention` was, in one run with it; its table holds the windows too.

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
