"""Sliding tile attention: a patch attends to the patches around it, in space and time.

jvdm generate "a large red ball rolls to the left" --system window_attention --density 0.25
"""

import dataclasses

from jvdm.attention import Window
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with windows of a quarter of its tokens after the first rows."""
    policy = Window(density=0.25, dense_rows=0.25, dense_layers=1)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=policy))
