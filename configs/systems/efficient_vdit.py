"""Efficient-vDiT: frames attend to themselves and to a few reference frames, which attend to all.

jvdm generate "a large red ball rolls to the left" --system efficient_vdit --density 0.5

Paper: Efficient-vDiT: Efficient Video Diffusion Transformers with Attention Tile,
arXiv:2502.06155.
Claim: Open-Sora-Plan 1.2 7.4 to 7.8 times as fast at 29 and 93 frames of 720p, with a student of
several steps that is trained on .1 % of the data.
Ours: the tiles, which give the nine sparsities of the paper's table, with a number of reference
frames for every layer that a search finds in a dense run (`jvdm.attention.AttentionTile`); their
gradients are those of masked attention, so that networks train with them. Tiles and four steps are
learnt at once by the student of `configs/efficient_vdit.py`.
Gain: none on `nano` without training: at .67 of dense attention PSNR 33.0 dB to it, one number of
references for all layers 31.6 at .61, random blocks 40.3 at .71. Trained together with four steps
29.5 dB to the teacher's sixteen guided ones at .52, the student of dense attention 35.4, and 25.3
with tiles that it was not trained with. On an H200 a row of Wan 1.3B's shape at 720p is 2.86 times
as fast at .17, one of LTX-Video 2B's 1.64 times at .18 (docs/attention.md).

jvdm attention --weights nano --height 64 --width 64 --num-frames 33 --block 4
    --search efficient_vdit --densities 0.75 0.5
jvdm generate PROMPT --system efficient_vdit --sampling.policy.references 5,4,3
python -m tests.systems.attention_tiles
The last was measured on two busy CPU cores: `nano` at four times its length, four prompts that the
search had not seen, the first quarter of the rows dense. Density that was reached (dense rows
included), PSNR in dB and SSIM:

    density                          0.75             0.6              0.45
    searched                         .81 38.2 .976    .67 33.0 .954    .57 30.1 .915
    searched with other prompts      .81 38.2 .976    .69 35.0 .957    .57 30.1 .915
    its numbers in other layers      .81 39.5 .977    .67 33.2 .937    .57 31.6 .921
    one number for all layers        .72 37.6 .971    .61 31.6 .924    .48 31.1 .920
    random blocks                    .81 42.2 .987    .71 40.3 .986    .58 37.6 .976
    windows                          .75 34.8 .955    .67 33.9 .948    .58 19.9 .485
    a draft                          .88 49.6 .998    .81 44.9 .994    .72 38.3 .981

python -m tests.systems.tiled_student
The student of `configs/efficient_vdit.py` and one with dense attention, 120 and 400 steps of 16
clips from the shipped `nano` (two CPU cores, jax 0.10.2, 51 to 101 s for 400), 17 frames, 128
held-out captions, four steps without guidance. PSNR in dB to what the teacher makes of the same
noise in 16 guided steps, and energy distance to films of the world, from which the teacher is 6.3:
`nano` was trained on 9 frames.

                                       dense attention   tiles, .52
    the shipped network                0   27.0   7.3    23.6  6.1
    trained with dense attention     120   34.0   6.8    25.2  5.0
                                     400   35.4   6.7    25.3  4.9
    trained with tiles               120   29.0   8.6    28.8  5.9
                                     400   28.7  10.9    29.5  6.1

So training with tiles gains 4 dB over putting them into a trained student, as the paper says, and
they still cost 6 dB to the teacher, and nothing to the world, after so short a training.

Both searches agree but at .6, so that numbers hardly depend on prompts, as the paper says; but the
errors of single layers do not say what a video loses: the same numbers in reversed order are no
worse, against it. Three layers are few. Nine latent frames allow no density below .31.
"""

import dataclasses

from jvdm.attention import AttentionTile
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with tiles of half of its attention; what a search found is given beside."""
    policy = AttentionTile(density=0.5)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=policy))
