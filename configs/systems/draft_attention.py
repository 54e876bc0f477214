"""DraftAttention: attention among patch means says which patches attend to which.

jvdm generate "a large red ball rolls to the left" --system draft_attention --density 0.25
"""

import dataclasses

from jvdm.attention import Draft
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with a quarter of its attention after the first rows."""
    sampling = dataclasses.replace(base.sampling, policy=Draft(density=0.25))
    return dataclasses.replace(base, sampling=sampling)
