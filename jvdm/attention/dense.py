"""Every token attends to every token."""

import dataclasses

from jvdm.attention.policy import AttentionCall, Policy


@dataclasses.dataclass(frozen=True)
class Dense(Policy):
    """Full attention over all tokens of the clip."""

    def select(self, q, k, v, state, call: AttentionCall):
        """Allows every pair."""
        return None, state
