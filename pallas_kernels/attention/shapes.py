"""Shapes by name: what the attention of published video models is given."""

import math
from typing import NamedTuple


class Shape(NamedTuple):
    """Self-attention of a network among the tokens of one video.

    Attributes:
        grid: Tokens along time, rows and columns.
        heads: Heads of queries, keys and values.
        size: Features of a head.
        layers: Layers with such attention.
    """

    grid: tuple[int, int, int]
    heads: int
    size: int
    layers: int

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return math.prod(self.grid)


# Videos of 81 frames (Wan 2.1, arXiv:2503.20314), 129 frames (HunyuanVideo, arXiv:2412.03603; its
# double and single blocks, without text), 121 frames of 512 x 768 and 257 of 704 x 1216 (LTX-Video
# 2B, arXiv:2501.00103), and the weights that come with jvdm at 128 x 128.
SHAPES = {
    "tiny": Shape((9, 8, 8), 6, 64, 12),
    "wan-1.3b-480p": Shape((21, 30, 52), 12, 128, 30),
    "wan-1.3b-720p": Shape((21, 45, 80), 12, 128, 30),
    "wan-14b-480p": Shape((21, 30, 52), 40, 128, 40),
    "wan-14b-720p": Shape((21, 45, 80), 40, 128, 40),
    "ltx-2b-512p": Shape((16, 16, 24), 32, 64, 28),
    "ltx-2b-704p": Shape((33, 22, 38), 32, 64, 28),
    "hunyuan-720p": Shape((33, 45, 80), 24, 128, 60),
}
