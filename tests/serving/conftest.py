"""The smallest shipped model, loaded once for all tests of this folder."""

import pytest

import jvdm

SMALL = {"height": 16, "width": 16, "num_frames": 1, "num_inference_steps": 2}
PROMPT = "a large red ball rolls to the left"


@pytest.fixture(scope="session")
def pipe():
    return jvdm.load("nano", progress=False)
