"""DiTCtrl: sections with prompts of their own, in tiles that share keys and values; no training.

jvdm generate "a red ball rests" --prompt-at 2.7s="a blue can rests" --system ditctrl --duration 5s

Paper: DiTCtrl: Exploring Attention Control in Multi-Modal Diffusion Transformer for Tuning-Free
Multi-Prompt Longer Video Generation, arXiv:2412.18597.
Claim: several prompts in one video without a cut between them, the best of its kind on MPVBench.
Ours: tiles of nine latent frames (the shipped model's length; theirs 13), of which neighbours share
six, whose clean data are averaged with triangular weights. A tile across two sections is told the
blend of both prompts by its frames in each: a third and two thirds, as theirs. Tiles go in pairs:
the second meets keys and values of the first instead of its own, from .04 to .5 of the rows in the
last sixth of the layers, and a tile between two is made with and without. Shared are those of video
tokens, for text is read by cross-attention here. Their masks of foreground and background, and
their SDE solver, are left out.
Gain: where the prompt changes, the largest change between frames is 20 times the usual one on
`tiny_t2v`, 12 without shared keys, and 92 at a hard cut; prompts by frames alone change nothing.

python -m tests.systems.two_prompts 3 6
Measured on two CPU cores that others shared (jax 0.10.2): three objects that rest and get another
colour at 2.75 s, 69 frames, six steps. `scene` is the difference of the median frames of both parts
in levels of 255, `jump` the largest change between frames over the usual one:

                    scene   jump
    sections alone    .06    3.1    (each frame reads its own prompt, no tiles: one thing is shown)
    own keys         4.56   11.8
    ditctrl          7.60   19.7
    in all layers    7.60   19.8
    hard cut         5.73   91.7    (two clips of other seeds)

So tiles and blended prompts make the change smooth; that shared keys keep more of what is seen is
not confirmed here: overlapping tiles of one noise keep the scene already. The readers' verdict on
both parts was not measured with the parts that the script judges now; 33 frames reach into the
change. In pictures of two other pairs (a ball that gets another colour, a box that begins to roll;
eight steps) both prompts are seen in their parts, with keys of their own and with shared ones.
"""

import dataclasses

from jvdm.attention import TileBefore
from jvdm.samplers import Tiles
from jvdm.system import System

TILE, OVERLAP = 9, 6  # latent frames; theirs are 13, of which 9 or 6 are shared


def system(base: System) -> System:
    """Returns `base` for clips of sections, whose tiles go in pairs."""
    rules = {"tiles": Tiles(TILE, OVERLAP, pairs=True), "policy": TileBefore()}
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
