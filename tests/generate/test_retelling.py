"""A cache of keys and values where a stream is told another prompt: kept, forgotten, rewritten."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jvdm
from jvdm import samplers
from jvdm.attention.cached_causal import KVCache
from jvdm.pipeline import Request, programs, streaming
from jvdm.pipeline.session import Prompt, begin_session, load_session
from jvdm.weights import safetensors

PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"
ONE_BY_ONE = samplers.AutoregressiveMatrix()
CACHED = {
    "matrix": "cached",
    "policy": "cached_causal",
    "policy.frames": 9,
    "policy.sink": 1,
    "matrix.lookback": 8,
}


@pytest.fixture(scope="module")
def cached(weights):
    """Makes sessions of four chunks, by what is done where the prompt changes."""

    def after(rule=ONE_BY_ONE, side=None, **changes):
        pipe = jvdm.load(weights, sampling=CACHED | changes, progress=False)
        sampling = pipe.system.sampling
        matrix = dataclasses.replace(sampling.matrix, rule=rule)
        sampling = dataclasses.replace(sampling, matrix=matrix)
        pipe = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
        session = begin_session(pipe, Request(prompt=PROMPT, seed=0, height=side, width=side))
        for _ in range(4):
            session, _ = session.step()
        return session

    return after


def cache_of(run):
    """The cache of all layers, with its frames those of the first layer."""
    parts = leaves(run.state.run.carry)
    (cache,) = [part for part in parts if isinstance(part, KVCache)]
    return cache


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda part: isinstance(part, KVCache))


def retold(session):
    """The session one chunk after another prompt, and the cache as that chunk found it."""
    seen, program = [], programs.stream_chunk
    told = session.after(Prompt(OTHER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            programs,
            "stream_chunk",
            lambda *args, mesh: (seen.append(args[-1]), program(*args, mesh=mesh))[1],
        )
        told, frames = told.step()
    (state,) = seen
    return told, frames, cache_of(session.run._replace(state=state))


def test_a_cache_is_kept_unless_something_else_is_asked_for(cached):
    session = cached()
    _, _, found = retold(session)
    for one, other in zip(leaves(found.k), leaves(cache_of(session.run).k), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found.frames[0, :4], [0, 1, 2, 3])
    assert session.run.latest is None


def test_what_is_rewritten_is_what_a_fresh_cache_would_hold(cached):
    """All finished frames under the other prompt, in a cache that never saw the first one."""
    session = cached(**{"matrix.rewrite": 4})
    told, _, found = retold(session)
    pipe, job = session.pipe, session.job
    network, shape = streaming.network(pipe, job), tuple(job.clip.shape)
    conditions = told.run.told[0].conditions
    empty = programs.begin_stream(*network, conditions, job.rows, None, np.uint32(0), shape=shape)
    carry = empty.run._replace(address=session.run.state.run.address)
    args = (conditions, job.rows, empty._replace(run=carry), session.run.latest)
    expected = cache_of(session.run._replace(state=programs.retell(*network, *args)))
    np.testing.assert_array_equal(found.frames, expected.frames)
    for name in ("k", "v"):
        now, then, before = (
            np.asarray(getattr(c, name))[:, :, :4] for c in (found, expected, cache_of(session.run))
        )
        np.testing.assert_array_equal(now, then)
        assert np.abs(now - before).max() > 1e-3


def test_it_changes_what_follows_and_only_where_another_prompt_begins(cached):
    kept, rewritten = cached(), cached(**{"matrix.rewrite": 2})
    (_, plain, _), (again, changed, _) = retold(kept), retold(rewritten)
    assert not np.array_equal(plain, changed)
    assert again.run.latest.shape[1] == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "retell", None)  # is not called where the prompt stays
        unchanged = rewritten.step()[0], again.step()[0] and kept.step()[0]
    for one, other in zip(*(leaves(cache_of(s.run).k) for s in unchanged), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_flushed_leaves_sink_and_latest_frames(cached):
    session = cached(**{"matrix.flush": 2})
    _, _, found = retold(session)
    np.testing.assert_array_equal(found.frames[:, :5], [[0, -1, 2, 3, -1]] * len(found.frames))


def test_a_cut_moves_all_that_follows_and_pins_its_first_frames(cached):
    """Nothing is forgotten: it is eight places further away, and the chunk comes out otherwise."""
    plain, cut = cached(), cached(**{"matrix.cut": 8, "policy.pinned": 1, "policy.frames": 10})
    (_, expected, kept), (told, frames, found) = retold(plain), retold(cut)
    np.testing.assert_array_equal(found.jump, 8)
    np.testing.assert_array_equal(found.shot, 4)
    np.testing.assert_array_equal(found.frames[0, :5], [0, -1, 1, 2, 3])
    np.testing.assert_allclose(found.k[:, :, 2:5], kept.k[:, :, 1:4], atol=1e-5)
    assert not np.array_equal(expected, frames)
    after = cache_of(told.run)
    np.testing.assert_array_equal(after.frames[0, :6], [0, 4, 1, 2, 3, 4])
    np.testing.assert_array_equal(after.places[0, :6], [0, 12, 1, 2, 3, 12])


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        (ONE_BY_ONE, {"cut": -1}),
        (ONE_BY_ONE, {"cut": 8, "rewrite": 2}),
        (samplers.LagMatrix(2), {"cut": 8}),
    ],
)
def test_cuts_that_cannot_be_are_refused(rule, changes):
    with pytest.raises(jvdm.ConfigError, match=f"a cut of {changes['cut']} places"):
        samplers.stream_of(samplers.CachedMatrix(rule, **changes), samplers.linspace_levels(3), 4)


def test_a_saved_session_knows_what_it_will_rewrite(cached, tmp_path):
    session = cached(**{"matrix.rewrite": 3}).after(Prompt(OTHER))
    session.save(tmp_path / "s.safetensors")
    again = load_session(session.pipe, tmp_path / "s.safetensors")
    for _ in range(2):
        (session, expected), (again, frames) = session.step(), again.step()
        np.testing.assert_array_equal(frames, expected)


def test_frames_packed_by_name_are_saved_and_flushed_with_the_others(cached, tmp_path):
    packed = {"policy.frames": 3, "policy.packed": "1,4", "policy.patches": "1,2"}
    session = cached(side=32, **packed, **{"matrix.lookback": 2, "matrix.flush": 2})
    rings = cache_of(session.run).older
    np.testing.assert_array_equal(cache_of(session.run).frames[0], [0, 3, 2])
    np.testing.assert_array_equal(rings[0].frames[0], [1])
    np.testing.assert_array_equal(rings[1].frames[0], [-1] * 4)
    assert rings[0].k[0, 0, 0].size == 4 * rings[1].k[0, 0, 0].size > 0
    session.save(tmp_path / "s.safetensors")
    again = load_session(session.pipe, tmp_path / "s.safetensors")
    (after, frames), (again, expected) = session.step(), again.step()
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_array_equal(cache_of(again.run).older[1].frames[0], [1, -1, -1, -1])
    np.testing.assert_array_equal(cache_of(after.run).older[0].frames[0], [2])
    _, _, found = retold(session)
    np.testing.assert_array_equal(found.frames[0], [0, 3, 2])
    np.testing.assert_array_equal(found.older[0].frames[0], [-1])


@pytest.mark.parametrize("lacks", ["arrays", "rules"])
def test_a_session_of_an_earlier_version_is_refused(cached, tmp_path, lacks):
    """Its caches had no places, jumps and shots; or its rules no fields for them."""
    session, path = cached(), tmp_path / "s.safetensors"
    session.save(path)
    _, metadata = safetensors.read_header(path)
    arrays, about = safetensors.map_stored(path), json.loads(metadata["jvdm.session"])
    if lacks == "arrays":
        gone = (".places", ".jump", ".shot")
        arrays = {name: x for name, x in arrays.items() if not name.endswith(gone)}
        missing = "jump, places, shot"
    else:
        policy = about["rules"]["sampling"]["policy"]
        del policy["pinned"], policy["weight"]
        missing = "pinned, weight"
    about["versions"]["jvdm"] = "0.0.7"
    earlier = tmp_path / "earlier.safetensors"
    safetensors.save_stored(earlier, arrays, {"jvdm.session": json.dumps(about)})
    why = rf"earlier jvdm \(version 0.0.7\).*{lacks} are without {missing}, .*without --resume"
    with pytest.raises(jvdm.WeightsError, match=f"(?s){why}"):
        load_session(session.pipe, earlier)


def test_other_rules_are_not_taken_for_those_of_an_earlier_version(cached, tmp_path):
    session, path = cached(), tmp_path / "s.safetensors"
    session.save(path)
    other = cached(**{"policy.sink": 2}).pipe
    with pytest.raises(jvdm.ConfigError, match="made with other rules"):
        load_session(other, path)


@pytest.mark.parametrize("changes", [{"flush": -1}, {"rewrite": -1}, {"rewrite": 3}])
def test_frames_that_cannot_be_rewritten_are_refused(changes):
    rule = samplers.CachedMatrix(samplers.AutoregressiveMatrix(2), **changes)
    with pytest.raises(jvdm.ConfigError, match="multiple of 2 to rewrite"):
        samplers.stream_of(rule, samplers.linspace_levels(3), 4)


@pytest.mark.parametrize("rule", [ONE_BY_ONE, samplers.LagMatrix(2)])
def test_a_young_stream_rewrites_what_there_is(cached, rule):
    """Four frames are finished, one at a time, or with a second one in work behind it."""
    exact, more = (retold(cached(rule, **{"matrix.rewrite": n}))[2] for n in (4, 6))
    np.testing.assert_array_equal(exact.frames, more.frames)
    held = np.asarray(exact.frames[0]) >= 0
    assert held.sum() == 4
    for name in ("k", "v"):
        one, other = (np.asarray(getattr(cache, name))[:, :, held] for cache in (exact, more))
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("changes", [{"matrix.rewrite": 3}, {"matrix.flush": 1, "matrix.cut": 8}])
def test_nothing_is_compiled_where_another_prompt_is_told(cached, changes, compilations):
    """Also in the second chunk, before there is as much as is written again."""
    pipe = cached(**changes).pipe
    asked = Request(prompt=PROMPT, seed=0, height=32)  # of a size that no other test has
    session, _ = begin_session(pipe, asked).step()
    with compilations() as found:
        for chunk in range(5):
            session, _ = session.step(*([Prompt(OTHER)] if chunk in (0, 3) else []))
    assert not found


def test_a_cache_that_is_shorter_than_what_is_read_is_refused(weights):
    """A clip that reads more is refused by its rows; a stream has no last row."""
    pipe = jvdm.load(weights, sampling=CACHED | {"policy.frames": 7}, progress=False)
    with pytest.raises(jvdm.ConfigError, match="latest 8 .* holds 7; .*policy.frames 8"):
        begin_session(pipe, Request(prompt=PROMPT, seed=0))
