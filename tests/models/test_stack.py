"""Stacks of layers."""

import concurrent.futures
import sys

from jvdm.models.stack import layer_stack
from jvdm.models.video_dit import VideoDiTLayer


def test_programs_that_are_traced_side_by_side_make_stacks_of_one_class():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns inside what makes a class
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: layer_stack(VideoDiTLayer, 2, "all", 1), range(64)))
    finally:
        sys.setswitchinterval(interval)
    assert "name" in VideoDiTLayer.__dataclass_fields__
