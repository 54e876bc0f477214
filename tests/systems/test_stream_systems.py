"""Systems that make videos without an end: their rows are those of the papers."""

import dataclasses
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.attention import (
    AttentionCall,
    CachedCausal,
    FrameCausal,
    TokenGrid,
    Window,
    blocks_of,
)
from jvdm.evaluate import EvaluateOptions, text
from jvdm.evaluate import run as evaluate
from jvdm.evaluation import streams
from jvdm.pipeline import Request, foresight, programs, streaming
from jvdm.recipes import load_system
from jvdm.samplers import (
    Call,
    LagMatrix,
    Stabilised,
    lag_matrix,
    linspace_levels,
    stream_of,
)
from jvdm.values import from_data, to_data
from jvdm.world.scene import COLORS
from tests.evaluation.drawn import disc, ground
from tests.generate import nano
from tests.systems import drift_curves

PROMPT = "a large red ball rolls to the left"


def sampling_of(name):
    return load_system(name, nano.SYSTEM).sampling


def rows_of(name, steps=16):
    """Level indices of a cycle, for the shipped model's 9 latent frames."""
    rows = stream_of(sampling_of(name).matrix, linspace_levels(steps), 9)
    return rows, np.asarray(rows.cycle.index)


def test_fvdm_makes_half_a_window_behind_a_finished_half():
    rows, index = rows_of("fvdm")
    assert (rows.block, rows.context, rows.buffer) == (4, 4, 8)
    assert (index[:, :4] == 16).all()
    np.testing.assert_array_equal(index[:, 4:], np.arange(17)[:, None] * np.ones(4))


def test_streamdit_moves_a_buffer_of_chunks_as_its_figure_does():
    """Its example has two steps a chunk and four chunks of two; ours four steps a chunk."""
    rows, index = rows_of("streamdit")
    assert (rows.block, rows.context, rows.buffer) == (2, 0, 8)
    np.testing.assert_array_equal(index[0], [12, 12, 8, 8, 4, 4, 0, 0])
    np.testing.assert_array_equal(index[-1], [16, 16, 12, 12, 8, 8, 4, 4])
    published = np.array([1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])
    shown = stream_of(LagMatrix(2, 2), jnp.asarray(published, jnp.float32), 8).cycle
    np.testing.assert_array_equal(
        published[np.asarray(shown.index)],
        [
            [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0],
            [0.125, 0.125, 0.375, 0.375, 0.625, 0.625, 0.875, 0.875],
            [0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75],
        ],
    )


def test_fifo_is_a_queue_whose_every_frame_is_a_step_behind():
    rows, index = rows_of("fifo")
    assert (rows.block, rows.context, rows.cycle.num_rows) == (1, 4, 1)
    assert (index[:, :4] == 16).all()
    np.testing.assert_array_equal(index[:, 4:], [np.arange(15, -1, -1), np.arange(16, 0, -1)])


def test_partitions_of_fifo_look_ahead_and_span_half_of_the_levels():
    """Every frame in work is made by the window that has at least half of its frames before it."""
    rows, index = rows_of("fifo")
    tiles = sampling_of("fifo").tiles
    first, shares = (
        tiles.places(rows.buffer, 1, 1)[:, 0],
        tiles.shares(rows.buffer, 1, 1)[..., 0, 0],
    )
    np.testing.assert_array_equal(first, [0, 4, 8, 12])
    makers = np.zeros(rows.buffer, int)
    for start, share in zip(first, shares, strict=True):
        assert np.ptp(index[0, start : start + 8]) <= 16 // 2
        assert set(share.tolist()) <= {0.0, 1.0}
        makers[start : start + 8] += (share > 0).astype(int)
        assert start == 0 or not share[:4].any()
    np.testing.assert_array_equal(makers, 1)
    for steps in (4, 40):
        rows, _ = rows_of("fifo", steps)
        assert rows.cycle.num_rows == 1 and rows.buffer == steps + 4


def test_windows_of_streamdit_spread_but_never_wrap_around():
    policy, grid = sampling_of("streamdit").policy, TokenGrid(8, 4, 4, head_dim=8)
    assert policy == Window(1.0, shifted=True, recall_queries=0)
    sparse, blocks = dataclasses.replace(policy, density=0.5), blocks_of(grid, 0)
    tokens = jnp.zeros((1, grid.tokens, 1, 8))
    t = jnp.zeros((1, 8))
    call = AttentionCall(jnp.int32(0), Call.at(t).row, t, grid)
    maps = [
        np.asarray(sparse.choose(*[tokens] * 3, call._replace(layer=jnp.int32(n)), blocks)[0][0, 0])
        for n in (0, 1)
    ]
    ends = (blocks.frames[:, None] == 0) & (blocks.frames[None] == 7)
    assert not any((seen & (ends | ends.T)).any() for seen in maps)
    assert all(seen.mean() <= 0.5 for seen in maps) and (maps[0] != maps[1]).any()
    twice = maps[0].astype(int) @ maps[1] @ maps[0] @ maps[1]
    assert twice.all()  # after four layers everybody knows of everybody


def test_diffusion_forcing_tells_a_small_level_and_says_so_in_its_record(pipe):
    sampling = sampling_of("diffusion_forcing")
    assert sampling.context == Stabilised(0.02)
    assert from_data(json.loads(json.dumps(to_data(sampling)))) == sampling


@pytest.mark.slow
def test_what_finished_frames_are_told_changes_later_ones_alone(weights):
    """The given picture and finished frames keep their bits; what looks at them does not."""
    image = np.zeros((16, 32, 3), np.uint8)
    asked = {"seed": 0, "progress": False, "output_type": "latent", "image": image}
    made = [
        np.asarray(jvdm.load(weights, sampling=rules, progress=False)(PROMPT, **asked))
        for rules in ({}, {"context": "stabilised", "context.level": 0.3})
    ]
    np.testing.assert_array_equal(made[0][:, 0], made[1][:, 0])
    assert np.abs(made[0][:, 1:] - made[1][:, 1:]).max() > 1e-3


def test_ar_diffusion_and_diffusion_forcing_never_look_ahead():
    sampling = sampling_of("ar_diffusion")
    assert isinstance(sampling.policy, CachedCausal)
    matrix = sampling.matrix(linspace_levels(16), 9)
    plain = np.asarray(lag_matrix(linspace_levels(16), 9, 5).index)
    again = np.append(True, ~np.asarray(matrix.write).any(1))
    np.testing.assert_array_equal(np.asarray(matrix.index)[again], plain)
    assert (matrix.window, matrix.lookback) == (4, 5)
    rows, _ = rows_of("ar_diffusion")
    assert (rows.buffer, rows.cycle.num_rows, rows.context) == (4, 6, 0)
    assert sampling_of("diffusion_forcing").policy == FrameCausal()
    rows, index = rows_of("diffusion_forcing")
    assert (rows.buffer, rows.context) == (9, 5)
    assert (np.diff(index[:, 5:], axis=1) < 0).all()


CACHED = {"matrix": "cached", "policy": "cached_causal", "policy.frames": 3}
CAUSAL = {"matrix": "autoregressive", "policy": "frame_causal"}


@pytest.mark.slow
def test_a_stream_with_a_cache_is_the_clip_without_it(weights):
    """All branches of guidance have their own keys and values."""
    causal, cached = (jvdm.load(weights, sampling=s, progress=False) for s in (CAUSAL, CACHED))
    asked = {"seed": 0, "progress": False, "output_type": "latent"}
    expected = np.asarray(causal(PROMPT, **asked))
    job = streaming.prepare_stream(cached, Request(prompt=PROMPT, seed=0), {})
    run = streaming.begin(cached, job)
    network, state = streaming.network(cached, job), run.state
    for frame in range(3):
        state, block = programs.stream_chunk(*network, run.told[0][1], job.rows, state)
        np.testing.assert_allclose(block[:, 0], expected[:, frame], rtol=1e-3, atol=1e-3)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == job.held.window + job.held.cache
    assert job.held.cache == sum(x.nbytes for x in jax.tree.leaves(state.run.carry))


def test_a_cache_is_asked_for_before_anything_is_made(weights):
    short = jvdm.load(weights, sampling=CACHED | {"policy.frames": 1}, progress=False)
    with pytest.raises(jvdm.ConfigError, match="row 8 .* reads latent frame 0 .* holds 1 frames"):
        short.prepare(Request(prompt=PROMPT, seed=0))
    none = jvdm.load(weights, sampling={"matrix": "cached"}, progress=False)
    with pytest.raises(jvdm.ConfigError, match="row 4 .* reads latent frame 0 .* holds 0 frames"):
        none.prepare(Request(prompt=PROMPT, seed=0))
    with pytest.raises(jvdm.ConfigError, match="a cache that the policy Dense does not keep"):
        none.stream(PROMPT, seed=0)
    image = np.zeros((16, 32, 3), np.uint8)
    full = jvdm.load(weights, sampling=CACHED, progress=False)
    with pytest.raises(jvdm.ConfigError, match="cache was given a picture"):
        full.stream(PROMPT, seed=0, image=image)


def test_what_is_measured_of_a_stream(monkeypatch, pipe):
    """A video that turns brighter by 51 of 255, and jumps where a chunk begins."""
    level = np.repeat([0, 10, 51], [5, 8, 7])[:, None, None, None] + np.zeros((1, 4, 4, 3))
    level[1::2, :2] += 4  # what moves all the time
    video = level.astype(np.uint8)
    rows = stream_of(LagMatrix(2), linspace_levels(4), 3)
    job = types.SimpleNamespace(rows=rows)
    monkeypatch.setattr(streaming, "prepare_stream", lambda *_: job)
    chunks = [video[:1], *(video[n : n + 4] for n in range(1, 17, 4)), video[17:]]
    monkeypatch.setattr(foresight, "chunks", lambda *_: iter(chunks))
    found = streams.measure_stream(pipe, PROMPT, 0, 20, video[:4] + 10)
    assert found["calls/chunk"] == rows.cycle.num_rows
    assert (found["seam at"], found["seam"]) == (13, pytest.approx(43 / 2, rel=0.02))
    assert found["borders"] == pytest.approx((2 + 12) / 2 / 2)  # changes of 12, 2, 43 and 2
    assert (found["changes"][4], found["changes"][12]) == (12, 43)
    (row,) = [streams.mean_of([found, found])]
    assert (row["seam at"], row["drift"]) == ([13, 13], round(found["drift"], 3))
    assert re.search(r"seam .*\nmine .* 21.\d\d +3.50 ", streams.text([{"system": "mine", **row}]))
    np.testing.assert_allclose(found["drift"], 51 / 2, rtol=1e-3)  # of means; deviations are equal
    np.testing.assert_allclose(found["motion"], 1.0, rtol=1e-3)
    np.testing.assert_allclose(found["PSNR"], 20 * np.log10(25.5), rtol=1e-3)
    with pytest.raises(jvdm.ConfigError, match="7 frames; its ends are compared; make 8"):
        streams.measure_stream(pipe, PROMPT, 0, 7, video[:4])


def test_a_curve_tells_what_is_seen_in_each_quarter_and_how_colours_drift():
    """A red disc that is two in the second quarter, blue in the third, and gone in the last."""
    film = disc(ground(40), "red", (32, 20), 8, slice(0, 20))
    film = disc(disc(film, "red", (32, 48), 8, slice(10, 20)), "blue", (32, 20), 8, slice(20, 30))
    film[:, 0] += np.linspace(0, 0.02, 40)[:, None, None]  # what changes all the time
    parts = np.split(np.round(255 * film).astype(np.uint8), range(5, 40, 5))
    seam, *rest = drift_curves.row_of(parts, COLORS.index("red"))
    assert rest[:4] == [1, 0, 0, 0] and seam > 10
    assert min(rest[4:]) > 1
    still = drift_curves.row_of([parts[0]] * 8, COLORS.index("red"))
    assert still[1:5].tolist() == [1] * 4 and max(still[5:]) < 0.01


def test_a_naive_film_goes_on_from_the_last_picture_of_each_clip():
    told = []

    def clips(prompt, image=None, **rules):
        told.append((None if image is None else int(image[0, 0, 0]), rules["seed"]))
        first = 10 * len(told) if image is None else image[0, 0, 0]
        return (first + np.arange(9)).astype(np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3))

    parts, _ = drift_curves.naive(clips, PROMPT, {"seed": 2, "num_frames": 25})
    assert told == [(None, 2000), (18, 2001), (26, 2002)]
    assert np.concatenate(parts)[:, 0, 0, 0].tolist() == list(range(10, 35))


def test_streams_are_measured_beside_the_clip(weights, tmp_path):
    options = EvaluateOptions(str(weights), streams=("wave",), stream_frames=18, output=tmp_path)
    options = dataclasses.replace(options, num_prompts=1, batch_size=1)
    result = evaluate(options)
    clip, wave = result["streams"]
    assert (clip["system"], wave["system"]) == ("clip", "wave")
    assert set(streams.COLUMNS) - set(clip) == set(streams.COLUMNS) - {"seam", "borders"}
    assert set(streams.COLUMNS) <= set(wave) and wave["calls/chunk"] == 2
    assert len(wave["changes"][0]) == 17 and wave["seam at"][0] in (5, 9, 13, 17)
    assert json.loads((tmp_path / "streams.json").read_text())["streams"] == result["streams"]
    first, second = text(result).splitlines()[1:3]
    assert re.fullmatch(r"clip( +-){3} +[\d.]+ +[\d.]+( +-){3}", first) and "-" not in second


@pytest.mark.parametrize(
    ("name", "sink", "flush", "rewrite"), [("longlive", 3, None, 9), ("infinity_rope", 1, 1, 0)]
)
def test_streams_with_a_cache_say_what_becomes_of_it_where_the_prompt_changes(
    name, sink, flush, rewrite
):
    rows, index = rows_of(name, steps=4)
    assert (rows.block, rows.context, rows.buffer) == (3, 0, 3)
    assert (rows.flush, rows.rewrite) == (flush, rewrite)
    np.testing.assert_array_equal(index, [[0] * 3, [1] * 3, [2] * 3, [3] * 3, [4] * 3, [4] * 3])
    assert np.asarray(rows.cycle.write)[-1].all() and not np.asarray(rows.cycle.write)[:-1].any()
    policy = sampling_of(name).policy
    held = np.asarray(policy.slots(np.arange(30)))
    np.testing.assert_array_equal(held[:sink], np.arange(sink))
    for block in range(0, 30, 3):  # no two frames of a block in one slot
        assert len(set(held[block : block + 3])) == 3


def test_a_prompt_of_longlive_2_is_a_shot_behind_a_cut():
    rows, _ = rows_of("longlive_2", steps=4)
    assert (rows.block, rows.buffer, rows.cut, rows.rewrite) == (8, 8, 8, 0)
    policy = sampling_of("longlive_2").policy
    assert (policy.sink, policy.pinned, policy.frames - 16) == (8, 8, 8)  # and the window: 32


def test_a_ring_that_holds_no_whole_block_is_refused():
    grid = TokenGrid(3, 2, 2)
    with pytest.raises(jvdm.ConfigError, match="the ring behind .* a whole block"):
        CachedCausal(3, sink=1, block=3).init(grid)
