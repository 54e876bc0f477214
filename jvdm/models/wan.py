"""WanDiT: the transformer of Wan 2.1, with a noise level for every frame.

Wan 2.1 (Wan Team, arXiv:2503.20314) as Diffusers' `WanTransformer3DModel` computes it; see
`jvdm.models.adaln_single` for what differs.
"""

from typing import Any

from jvdm.models.adaln_single import AdaLNSingle
from jvdm.models.conditions import TextStates


class WanDiT(AdaLNSingle):
    """Text to video with the network of Wan 2.1; the defaults are those of its 1.3B model.

    The 14B model has `width` 5120, `depth` 40 and `mlp_width` 13824. Levels are told in whole
    thousandths (`whole_thousandths`). The padding of a prompt is zero and is read like the rest;
    the published models know 512 states.

    Attributes:
        rotary_base: Ratio of the slowest to the fastest wavelength of positions.
        cross_norm: Whether tokens are normalised before they read the prompt.
    """

    width: int = 1536
    depth: int = 30
    latent_channels: int = 16
    head_dim: int = 128
    mlp_width: int = 8960
    patch: int = 2
    rotary_base: float = 1e4
    cross_norm: bool = True

    @property
    def rotary_axes(self) -> tuple[int, int, int]:
        """Features of a head that turn with time, row and column."""
        side = self.head_dim // 6 * 2
        return (self.head_dim - 2 * side, side, side)

    def made(self) -> dict[str, Any]:
        """Returns the fields of the layers beside those of `TransformerLayer`."""
        return {"centred": True, "cross_norm": self.cross_norm, "head_epsilon": 1e-6}

    def prompt_lengths(self, text: TextStates) -> None:
        """All states are read."""
