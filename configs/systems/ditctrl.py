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
Gain: what the second prompt leaves open stays as it was in four of six clips on `tiny_t2v`, in one
without shared keys; where it names another colour, the largest change between frames is 10 times
the usual one, 15 without shared keys, 62 at a hard cut.

python -m tests.systems.two_prompts open 6 6
Measured on two CPU cores that others shared (jax 0.10.2): six films of one object of 69 frames, six
steps; the second prompt, from 2.75 s on, names size and shape and no colour, and three of them a
motion. Clips whose last 21 frames show one object of the first colour:

    latent frames that tiles share      6     3     0
    own keys                          .17   .17   .00
    ditctrl                           .67   .67   .67

What tiles share of the noise and of their clean data does not say what the object is: the keys do.

python -m tests.systems.two_prompts 2 6 "own keys" ditctrl
Two objects that rest and get another colour at 2.75 s, likewise; the columns are those of the
script's head:

                first  second  moved  scene   jump
    own keys     1.00    1.00    .11   6.16   14.6
    ditctrl      1.00     .50    .12   5.47   10.4
    hard cut     1.00    1.00    .30   4.76   61.6    (two clips of other seeds)

Shared keys make the change smoother, and keep one object at its first colour; the place is kept
without them too, for tiles overlap in one noise. An earlier run with three objects had jumps of
19.7, 11.8 without shared keys and 91.7 at the cut: few clips say little. Prompts by frames alone,
without tiles, changed nothing there (jump 3.1): one thing is shown. In eight steps both prompts
are seen in pictures of a ball that gets another colour, and of a box that begins to roll.
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
