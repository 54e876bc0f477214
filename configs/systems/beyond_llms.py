"""Generative AI beyond LLMs: what models of videos spend their time on. A study, no method.

jvdm profile wan-1.3b-480p --no-measure
jvdm profile ltx-2b-512p --no-measure

Paper: Generative AI Beyond LLMs: System Implications of Multi-Modal Generation, arXiv:2312.14385.
Claim: with attention made fast, convolutions take up to 44 % of the time of diffusion models of
pictures, linear layers up to 49 % of that of transformers, and attention over time more than 60 %
of all attention of models of videos.
Ours: the same question for video transformers; the system is dense attention, as the study has it.
Gain: none is meant. Attention whose scores are never written takes a guided step of Wan 1.3B from
6,980 to 789 ms by the data sheet of an H200.

Golden et al. profile eight models of pictures and videos on an A100. What they find, and what these
two tables say: one guided step of Wan 1.3B (81 frames of 480 x 832) and of LTX-Video 2B (121 of 512
x 768), prompts and decoding beside it; operations are counted from the traced programs, times
predicted for an H200 by its data sheet:

* Convolutions take up to 44 % of the time of diffusion for pictures: 39 and 39 % of decoding here,
  though they are 99 % of its operations; the transformers have none.
* Linear layers take up to 49 % of transformers: 21 % of a step of Wan, 42 % of one of LTX, whose
  sequence is a fifth as long; 45 and 66 % of the text encoders.
* Attention whose scores are never written gains more in diffusion than in language models: a step
  of Wan falls from 6,980 to 789 ms, one of LTX from 669 to 98, the text encoders by 5 and 2 %.
* Lengths of sequences differ within one video (theirs by 4): 512 tokens of a prompt, 32,760 of a
  step and 6,240 of a frame in Wan's decoder; 128 and 6,144 in LTX.
* Attention over time alone takes more than 60 % of their attention: no model here has it, every
  token attends to every other, which is 70 and 30 % of the operations of a step.

Measured beside it (`jvdm bench families`, one H200): two calls of Wan 916 ms, of LTX 119 ms, Wan's
decoder 652 ms where 11 pieces of 67 ms are predicted.
"""

import dataclasses

from jvdm.attention import Dense
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` as the study has its models: every token attends to every other."""
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=Dense()))
