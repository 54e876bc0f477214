"""The vision encoder of CLIP: what a picture shows, as states that a video network reads.

Radford et al., arXiv:2103.00020, section 2.4, as Transformers' `CLIPVisionModel` computes it, and
`CLIPImageProcessor` prepares pictures for it.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Tokens, UInt8
from jvdm.features import fold
from jvdm.models.layers import Linear
from pallas_kernels import dense_attention


@dataclasses.dataclass(frozen=True)
class ClipPictures:
    """How pictures are brought to the size and the range that the encoder reads.

    Attributes:
        size: Pixels of the shorter side, or height and width, to which a picture is resized
            (bicubic, by Pillow); None leaves it.
        crop: Height and width that are cut out of its centre, with black around a smaller one;
            None leaves it.
        factor: What bytes are multiplied with.
        mean: What is then subtracted from red, green and blue.
        std: What the rest is divided by.
        resample: Number of Pillow's filter; 3 is bicubic.
    """

    size: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resample: int = 3

    def __call__(self, picture: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w 3"]:
        """Returns what the encoder reads of a picture, float32."""
        from PIL import Image as Pillow

        height, width = self._resized(*picture.shape[:2])
        if (height, width) != picture.shape[:2]:
            filter = Pillow.Resampling(self.resample)
            picture = np.asarray(Pillow.fromarray(picture).resize((width, height), filter))
        if self.crop is not None:
            picture = _centre(picture, *self.crop)
        values = (picture.astype(np.float64) * self.factor).astype(np.float32)
        return (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width after resizing, before the centre is cut out."""
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        short, long = self.size, int(self.size * max(height, width) / min(height, width))
        return (long, short) if width <= height else (short, long)


def _centre(
    picture: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
    lacks = [max(size - old, 0) for size, old in zip((height, width), picture.shape, strict=False)]
    picture = np.pad(picture, [*((-(-lack // 2), lack // 2) for lack in lacks), (0, 0)])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


class ClipVision(nn.Module):
    """Encoder of pictures; the defaults are those of ViT-H/14, which Wan 2.1 reads pictures by.

    Attributes:
        pictures: How a picture is prepared.
        width: Features of a state.
        depth: Layers before the states; the published network has one more, which they do not see.
        heads: Attention heads of a layer.
        mlp_width: Hidden features of the feed-forward part of a layer.
        patch: Pixels of the side of a square that is a token.
        quick: Whether the activation is `x sigmoid(1.702 x)`, as in the networks of OpenAI,
            instead of the exact GELU.
        epsilon: Added to the variance of norms.
        dtype: Number type of products; norms and softmax are float32.
    """

    pictures: ClipPictures = ClipPictures()
    width: int = 1280
    depth: int = 31
    heads: int = 16
    mlp_width: int = 5120
    patch: int = 14
    quick: bool = False
    epsilon: float = 1e-5
    dtype: str = "bfloat16"

    def read(self, pictures: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B h w 3"]:
        """Turns pictures into what the encoder takes, on the host."""
        return np.stack([self.pictures(picture) for picture in pictures])

    @nn.compact
    def __call__(self, pixels: Float[Array, "B h w 3"]) -> Tokens:
        """Returns the states of a picture: that of the whole, then those of its squares."""
        squares = fold(pixels[:, None], self.patch)
        squares = squares.reshape(len(pixels), -1, squares.shape[-1])
        (x,) = Linear((self.width,), self.dtype, name="patch_in")(squares)
        init = nn.initializers.normal(self.width**-0.5)
        whole = self.param("whole", init, (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(whole, (len(x), 1, self.width)), x], 1)
        places = self.param("places", init, (x.shape[1], self.width))
        x = _norm("norm_in", self.epsilon)(x + places.astype(self.dtype)[None])
        layers = nn.scan(
            _Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            check_constancy_invariants=self.is_initializing(),  # as `layer_stack` has it
        )
        sizes = (self.heads, self.mlp_width, self.quick, self.epsilon, self.dtype)
        return layers(*sizes, name="layers")(x.astype(self.dtype), None)[0]


class _Layer(nn.Module):
    heads: int
    mlp_width: int
    quick: bool
    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x: Tokens, _: None) -> tuple[Tokens, None]:
        y = _norm("mix_norm", self.epsilon)(x)
        q, k, v = (self._linear(name, x.shape[-1], y) for name in "qkv")
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in (q, k, v))
        mixed = dense_attention(q, k, v).reshape(x.shape)
        x = x + self._linear("out", x.shape[-1], mixed)
        y = self._linear("up", self.mlp_width, _norm("mlp_norm", self.epsilon)(x))
        y = y * nn.sigmoid(1.702 * y) if self.quick else nn.gelu(y, approximate=False)
        return x + self._linear("down", x.shape[-1], y), None

    def _linear(self, name: str, size: int, x: Float[Array, "B L I"]) -> Float[Array, "B L O"]:
        return Linear((size,), self.dtype, bias=True, name=name)(x)[0]


def _norm(name: str, epsilon: float) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)
