"""Skip-softmax: blocks whose scores are far below the best before them are not weighed.

jvdm generate "a large red ball rolls to the left" --system skip_softmax --density 0.9

Paper: BLASST: Dynamic BLocked Attention Sparsity via Softmax Thresholding, arXiv:2512.12087.
Claim: a prefill of language models 1.52 times as fast at 71.9 % of the blocks skipped, without
training. That of video models is in the documentation of the code alone.
Ours: the limit is an operand of the lists (`skip_log2` of `BlockMask`), for every block of queries,
so that frames may have their own; reference, XLA, the TPU kernel and that for Hopper read it, and a
limit of minus infinity changes no bit. A skipped block costs half, so that densities are .5 and
more. Blocks are visited from near to far. `a exp(b skipped)` is fitted once for weights
(`jvdm.attention.SkipSoftmax`); the numbers here are those of `tiny_t2v` and `nano`, with blocks of
16 and 4 tokens, and are refused for other weights.
Gain: on `nano` the density that is asked for is reached within .03, also at sizes that were not
calibrated; at .9 PSNR 52.6 dB to dense, a draft 54.1; at .75 37.8, a draft 47.8. Nothing on an
H200: a row of Wan 1.3B's shape at 720p takes 1.24 times as long as a dense one at .8, 1.21 at .71.

jvdm attention --num-inference-steps 8 --search skip_softmax --densities .9 .75 .6
    --prompts "a large red ball rolls to the left"
Measured on two CPU cores that others shared (jax 0.10.2, 161 s): the third edition of `tiny_t2v` at
256 x 256, four times its tokens, ten layers. A scale of 7.92 exp(6.949 skipped): at a limit of 2^-9
the first layer skips nothing, the last .38 of its blocks. A clip that the search had not seen (`a
small purple box falls`, seed 1000), the first layer and a quarter of the rows dense, by a script
that is not kept; density and recall of the other calls:

    asked   limit    density  recall  PSNR, SSIM    a draft
    .9      2^-6.2   .909     .996    52.9 .999     .903 .994 46.2 .998
    .75     2^-3.2   .768     .946    30.3 .960
    .6      2^-.2    .548     .607    20.0 .759

A draft was measured at .9 alone. The fit misses .6, where the limit is near the best score itself.

jvdm attention --weights nano --height 128 --width 128 --block 4 --search skip_softmax
    --densities .9 .75 .6
python -m tests.systems.skipped_blocks
The last was measured on two busy CPU cores: `nano` at four times its tokens, four prompts that the
calibration had not seen, the first quarter of the rows and the first of three layers dense. Density
that was reached in the others, recall, PSNR in dB and SSIM:

    density                  0.9                 0.75                0.65                0.55
    near first               .904 .996 52.6 .999 .767 .957 37.8 .983 .643 .846 31.2 .932 .574 28.0
    by number, as the paper  .907 .995 51.8 .999 .772 .954 38.0 .985 .645 .839 31.2 .929 .584 28.8
    a draft's order          .882 .994 51.3 .999 .720 .941 36.3 .980 .588 .802 29.6 .917 .532 27.7
    fit of other prompts     .903 .996 52.4 .999 .767 .956 37.8 .983 .642 .844 31.1 .930 .574 28.0
    fit of half the side     .894 .995 51.7 .999 .767 .957 37.9 .983 .653 .860 32.1 .940 .574 28.0
    a draft's blocks         .896 .997 54.1 .999 .750 .987 47.8 .998 .646 .976 43.2 .995 .542 40.2
    random blocks            .896 .951 42.1 .992 .750 .875 37.1 .980 .646 .825 36.3 .975 .542 33.4

The order hardly matters here, for 48 blocks of four tokens; more is skipped after a draft's best,
and no better. Below .75 random blocks are better at equal cost: the limit is then near the best
score itself. Its use is above, where it needs no choice and loses little.

python -m tests.systems.skipped_blocks wan-1.3b-720p
One H200, jax 0.11.2, 75,600 tokens, structured attention: a scale of 9.043 exp(12.05 skipped).
Asked .9 and .8 of a network whose first layer is dense: .795 and .713, 2.42 and 2.37 s a row where
dense attention takes 1.96, PSNR 40.1 and 39.8 dB. Attention alone: 67 ms where nothing is skipped,
63 at .59, 62 without limits, 53 in the order of tokens and without padding.

Pitfalls: on Hopper a warpgroup that leaves a block out must wait for the one beside it and for the
scores of the next, with no product under way, so that nothing is gained up to .6; B100 and B200 are
served by plain XLA, which computes what it skips. No kernel has gradients of limits.
Padding of short blocks would need every block, if it counted as queries: it does not. What a kernel
decides on are its own tiles, which may be larger than blocks. A fit is of a size of blocks: with
blocks of one token `nano` does .74 where .9 is asked for.
"""

import dataclasses

from jvdm.attention import SkipSoftmax
from jvdm.system import System

TINY_T2V = SkipSoftmax(
    density=0.9,
    dense_layers=1,
    block=16,
    fit=(7.92, 6.949),
    weights="05758cf4101066ef.58a38a531e2171ef",
)
NANO = dataclasses.replace(TINY_T2V, block=4, fit=(1.636, 5.752), weights="aeb826242be71de2")


def system(base: System) -> System:
    """Returns `base` with a fifth of its blocks skipped after the first rows.

    Limits are those of `tiny_t2v`, or of `nano` if it has as few layers.
    """
    policy = NANO if base.model.depth == 3 else TINY_T2V
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=policy))
