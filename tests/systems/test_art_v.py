"""ART.V: films of single frames at any length, as a clip, a stream and a saved session."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from jvdm.models.next_frame import NextFrameDiT
from jvdm.pipeline import Pipeline, Request, programs
from jvdm.pipeline.session import Prompt, begin_session, load_session
from jvdm.recipes import load_system
from jvdm.samplers import AutoregressiveMatrix, Stabilised, linspace_levels
from tests.generate import nano
from tests.generate.test_session import steps

PROMPT, OTHER = "a large red ball rests", "a small blue box rests"
MODEL = NextFrameDiT(
    width=32, depth=1, latent_channels=4, head_dim=16, rotary_axes=(4, 6, 6), dtype="float32"
)
BASE = dataclasses.replace(nano.SYSTEM, model=MODEL)


@pytest.fixture(scope="module")
def film() -> Any:
    """The random model as the system."""
    params: Any = nano.drawn(BASE.init, jax.random.key(0))
    return Pipeline(load_system("art_v", BASE), params, nano.MANIFEST)


@pytest.fixture(scope="module")
def whole(film) -> Any:
    """The same, where every call sees all frames."""
    rules = {"matrix": AutoregressiveMatrix(), "context": Stabilised(0.1)}
    sampling = dataclasses.replace(film.system.sampling, **rules)
    return dataclasses.replace(film, system=dataclasses.replace(film.system, sampling=sampling))


@pytest.mark.filterwarnings("ignore:.*more than the 9")
def test_frames_are_those_of_calls_that_see_all_and_know_nothing_of_what_follows(film, whole):
    rules = {"seed": 0, "progress": False, "output_type": "latent", "num_frames": 21}
    made = film(PROMPT, **rules)
    assert film.system.sampling.matrix(linspace_levels(3), 6).window == 3
    np.testing.assert_allclose(made, whole(PROMPT, **rules), rtol=1e-4, atol=1e-4)
    short = film(PROMPT, **{**rules, "num_frames": 13})
    np.testing.assert_allclose(made[:, :4], short, rtol=1e-4, atol=1e-4)


def test_a_window_holds_the_frames_that_the_network_is_shown():
    base = dataclasses.replace(BASE, model=MODEL.clone(back=(1, 3)))
    assert load_system("art_v", base).sampling.matrix.window == 4


def test_a_stream_keeps_its_anchor_in_a_state_of_one_size(film):
    session = begin_session(film, Request(prompt=PROMPT, seed=0))
    found = []
    for chunk in range(20):
        session, _ = session.step(*([Prompt(OTHER)] if chunk == 5 else []))
        if chunk in (2, 19):
            carry = session.run.state.run.carry
            sizes = [x.nbytes for x in jax.tree.leaves((session.run.state, session.run.decoder))]
            found.append((np.asarray(carry.anchor), sizes, programs.stream_chunk._cache_size()))
    first, last = found
    assert first[1:] == last[1:] and np.abs(first[0]).max() > 0
    np.testing.assert_array_equal(first[0], last[0])


def test_a_saved_session_goes_on_with_its_anchor(film, tmp_path):
    session, _ = steps(begin_session(film, Request(prompt=PROMPT, seed=0)), 4)
    session.save(tmp_path / "s.safetensors")
    again = load_session(film, tmp_path / "s.safetensors")
    np.testing.assert_array_equal(steps(again, 2)[1], steps(session, 2)[1])
