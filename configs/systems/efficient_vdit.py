"""Efficient-vDiT: frames attend to themselves and to a few reference frames, which attend to all.

jvdm generate "a large red ball rolls to the left" --system efficient_vdit --density 0.5

Paper: Efficient-vDiT: Efficient Video Diffusion Transformers with Attention Tile,
arXiv:2502.06155.
Claim: Open-Sora-Plan 1.2 7.4 to 7.8 times as fast at 29 and 93 frames of 720p, with a student of
several steps that is trained on .1 % of the data.
Ours: the tiles, which give the nine sparsities of the paper's table, with a number of reference
frames for every layer that a search finds in a dense run (`jvdm.attention.AttentionTile`); their
gradients are those of masked attention, so that networks train with them. The student is
`jvdm train configs/tiny_t2v_4step.py`, with such a policy in its network. Tiles and steps were not
trained together here.
Gain: none on `nano` without training: at .67 of dense attention PSNR 33.0 dB to it, one number of
references for all layers 31.6 at .61, random blocks 40.3 at .71; no time was measured on a GPU.

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
