"""Every token attends to every token."""

import dataclasses

from jvdm.attention.policy import TokenGrid


@dataclasses.dataclass(frozen=True)
class Dense:
    """Full attention over all tokens of the clip."""

    def init(self, grid: TokenGrid) -> None:
        """Dense attention remembers nothing."""

    def select(self, q, k, v, state, call):
        """Allows every pair."""
        return None, state
