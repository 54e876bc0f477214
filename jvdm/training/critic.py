"""A head that says, of what a network sees in noised clips, whether they are films of the data."""

import flax.linen as nn
import jax

from jvdm.arrays import Array, Float
from jvdm.features import rms_normalize
from jvdm.models.layers import Linear


class Critic(nn.Module):
    """Two layers on each token of a network's features (DMD2, arXiv:2405.14867, section 4.3).

    Theirs has convolutions, and one opinion of a picture.
    """

    hidden: int = 64

    @nn.compact
    def __call__(self, features: Float[Array, "B L D"]) -> Float[Array, "B L"]:
        """Returns a logit for each token, at first 0: above it, what is seen is of the data."""
        (y,) = Linear((self.hidden,), "float32", bias=True)(rms_normalize(features))
        return Linear((1,), "float32", scale=0.0, bias=True)(nn.silu(y))[0][..., 0]


def told_apart(true: Float[Array, "B L"], made: Float[Array, "B L"]) -> Float[Array, ""]:
    """Returns the error of logits: `log 4` where films and what is made are not told apart."""
    return jax.nn.softplus(-true).mean() + jax.nn.softplus(made).mean()
