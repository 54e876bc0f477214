"""LinGen: a network of scans as a clip at any level per frame, and a network without them."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from jvdm.attention import TemporalSwin
from jvdm.errors import ConfigError
from jvdm.models.state_space import Mamba2
from jvdm.pipeline import Pipeline
from jvdm.recipes import load_system
from jvdm.samplers import LagMatrix
from jvdm.values import from_data, to_data
from tests.generate import nano

PROMPT = "a large red ball rests"
WINDOW = TemporalSwin((2, 1, 2))
MODEL = nano.DIT.clone(policy=WINDOW, scan=Mamba2(8, chunk=4, review=(2, 1, 2)))
BASE = dataclasses.replace(nano.SYSTEM, model=MODEL)
ASKED = {"seed": 0, "progress": False, "output_type": "latent"}


@pytest.fixture(scope="module")
def params() -> Any:
    """Random ones."""
    return nano.drawn(BASE.init, jax.random.key(0))


def test_a_network_keeps_the_windows_that_it_was_made_with(params):
    system = load_system("lingen", BASE)
    assert system.sampling.policy == WINDOW
    assert load_system("lingen", nano.SYSTEM).sampling.policy == TemporalSwin()
    assert from_data(to_data(MODEL)) == MODEL


def test_frames_of_other_levels_are_made_in_one_call(params):
    lagged = dataclasses.replace(BASE.sampling, matrix=LagMatrix(1))
    found = [
        np.asarray(Pipeline(load_system("lingen", base), params, nano.MANIFEST)(PROMPT, **ASKED))
        for base in (BASE, dataclasses.replace(BASE, sampling=lagged))
    ]
    assert all(map(np.all, map(np.isfinite, found)))
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_windows_that_hold_the_whole_grid_are_full_attention(pipe):
    """Weights without scans run; 3 x 1 x 2 tokens are fewer than a window."""
    ours = dataclasses.replace(pipe, system=load_system("lingen", pipe.system))
    made, plain = (np.asarray(one(PROMPT, **ASKED)) for one in (ours, pipe))
    np.testing.assert_allclose(made, plain, rtol=1e-3, atol=1e-3)


def test_a_system_that_reads_the_past_alone_is_refused(params):
    causal = Pipeline(load_system("autoregressive", BASE), params, nano.MANIFEST)
    with pytest.raises(ConfigError, match="FrameCausal beside a scan"):
        causal(PROMPT, **ASKED)
