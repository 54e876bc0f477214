"""ViD-GPT: chunks that read a cached prompt of frames are those that see the frames themselves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.attention import CachedCausal, FrameCausal
from jvdm.pipeline import Request, programs, streaming
from jvdm.recipes import load_system
from jvdm.samplers import AutoregressiveMatrix, Call, linspace_levels, stream_of
from tests.generate import nano

PROMPT = "a large red ball rolls to the left"


@pytest.fixture(scope="module")
def cached(weights) -> Any:
    """The system on the random model."""
    return jvdm.load(weights, system="vid_gpt", dtype="float32", progress=False)


def latents_of(pipe, chunks):
    """Returns the latents of so many chunks, and the last state, from one stream."""
    job = streaming.prepare_stream(pipe, Request(prompt=PROMPT, seed=0), {})
    run, made = streaming.begin(pipe, job), []
    network, state = streaming.network(pipe, job), run.state
    for _ in range(chunks):
        state, block = programs.stream_chunk(*network, run.told[0].conditions, job.rows, state)
        made.append(np.asarray(block))
    return np.concatenate(made, 1), state


def test_a_chunk_is_three_frames_that_are_finished_and_then_written():
    rows = stream_of(load_system("vid_gpt", nano.SYSTEM).sampling.matrix, linspace_levels(4), 9)
    assert (rows.block, rows.buffer, rows.context) == (3, 3, 0)
    np.testing.assert_array_equal(rows.cycle.index, [[n] * 3 for n in (0, 1, 2, 3, 4, 4)])
    write = np.asarray(rows.cycle.write)
    assert write[-1].all() and not write[:-1].any()


def test_cached_chunks_are_those_of_a_run_that_sees_all_frames(cached, weights):
    """As long as the queue holds all of them: three chunks, two of which are read."""

    def without(base):
        rules = {"matrix": AutoregressiveMatrix(3), "policy": FrameCausal()}
        return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))

    plain = jvdm.load(weights, system=without, dtype="float32", progress=False)
    asked = {"seed": 0, "num_frames": 33, "progress": False, "output_type": "latent"}
    expected = np.asarray(plain(PROMPT, **asked))
    found, _ = latents_of(cached, 3)
    assert np.abs(found).max() > 1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_frames_of_a_chunk_do_not_see_later_ones(cached):
    policy = cached.system.network.policy
    assert policy == CachedCausal(frames=6, rotary="read") and policy.block == 1
    held = np.asarray(policy.slots(np.arange(12)))
    np.testing.assert_array_equal(held[:6], held[6:])
    assert len(set(held[:6].tolist())) == 6


def test_a_chunk_costs_the_same_at_any_length(cached):
    """One program, a state of one size, and places that stay small when the queue has turned."""
    sizes, program = [], programs.stream_chunk
    for chunks in (1, 12):
        _, state = latents_of(cached, chunks)
        sizes.append([x.nbytes for x in jax.tree.leaves(state)])
        sizes.append(program._cache_size())
    assert sizes[:2] == sizes[2:]
    (cache,) = {
        id(part): part
        for part in jax.tree.leaves(state.run.carry, is_leaf=lambda x: hasattr(x, "forget"))
        if hasattr(part, "forget")
    }.values()
    frames = np.asarray(cache.frames)
    assert frames.max() == 35 and np.ptp(frames) == 5
    policy: Any = cached.system.network.policy
    row = Call.at(jnp.zeros((1, 3))).row._replace(frame=jnp.int32(36))
    one = jax.tree.map(lambda leaf: leaf[0], cache)
    assert sorted(np.asarray(policy._places(one, row)).tolist()) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(policy.positions(jnp.zeros(3), row, one), [6, 7, 8])
