"""Every token attends to every token."""

import dataclasses
from typing import ClassVar

from jvdm.attention.policy import AttentionCall, Policy


@dataclasses.dataclass(frozen=True)
class Dense(Policy):
    """Full attention over all tokens of the clip."""

    def select(self, q, k, v, state, call: AttentionCall):
        """Allows every pair."""
        return None, state


@dataclasses.dataclass(frozen=True)
class GatedDense(Dense):
    """Full attention in layers that have the port of a policy that is `gated`: to make them."""

    gated: ClassVar[bool] = True
