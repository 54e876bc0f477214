"""The bench of streams: what a chunk takes, whether that grows, and at which sizes."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import cli, pace, samplers
from jvdm.errors import ConfigError
from jvdm.models import Conditions, TextStates
from jvdm.models.wan import WanDiT
from jvdm.pipeline import programs


def test_chunks_are_timed_after_the_cache_is_full_and_hold_as_much_at_the_end(tmp_path, capsys):
    given = ["bench", "streams", "--chunks", "5", "--output", str(tmp_path)]
    assert cli.main(given) == 0
    (row,) = json.loads((tmp_path / "streams.json").read_text())["rows"]
    assert (row["shape"], row["calls"], row["frames"]) == ("stream-tiny", 5, 4)  # four and a write
    assert 0 < row["denoise_seconds"] < row["seconds"] <= row["slowest"]
    assert row["fps"] == pytest.approx(4 / row["seconds"])
    keys_and_values = 2 * 2 * 4 * 4 * 128 * 4  # of two layers, four frames of four tokens
    assert row["held"] == row["held_later"] > keys_and_values
    assert "stream-tiny           5       4" in capsys.readouterr().out


def test_a_chunk_hears_its_prompt_before_its_calls(monkeypatch):
    stream = pace.STREAMS["stream-tiny"]._replace(family="wan-tiny")
    system, shapes = pace.system_of(stream)
    rules: Any = stream.sampling
    rows = samplers.stream_of(rules.matrix, rules.levels(), 0)
    told = Conditions(TextStates(jnp.zeros((1, 4, 8)), jnp.full(1, 4)))
    given = (system.only("model", *pace.OF_A_ROW), {"model": shapes["model"]}, told, rows)
    shape = (1, rows.buffer, *stream.latents)
    state = programs.begin_stream.eval_shape(*given, None, np.uint32(0), shape=shape)
    assert programs.stream_chunk.eval_shape(*given, state)[1].shape == shape
    monkeypatch.setattr(WanDiT, "heard", lambda *given: Conditions())
    with pytest.raises(ConfigError, match="no prompt was given"):
        chunk = functools.partial(programs.stream_chunk.__wrapped__, given[0])
        jax.eval_shape(chunk, *given[1:], state)


def test_growth_is_the_slope_of_a_straight_line_and_noise_its_error():
    times = [0.1 + 2e-3 * index for index in range(50)]
    assert pace.line(times) == pytest.approx((2e-3, 0), abs=1e-12)
    noise = np.random.default_rng(0).normal(size=400)
    slope, error = pace.line(list(1 + 1e-2 * noise))
    assert abs(slope) < 3 * error < 2e-5
    assert pace.line([1.0, 2.0]) == (0.0, float("inf"))


@pytest.mark.parametrize(
    "name, parameters",
    [("streamdit-4b-512p", 4.0e9), ("nfd-310m", 310e6), ("wan-1.3b-480p", 1.42e9)],
)
def test_networks_have_as_many_parameters_as_published_ones(name, parameters):
    _, shapes = pace.system_of(pace.STREAMS[name])
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["model"]))
    assert count == pytest.approx(parameters, rel=0.02)


def test_no_chunks_and_unknown_streams_are_refused(tmp_path, capsys):
    given = ["bench", "streams", "--output", str(tmp_path)]
    assert cli.main([*given, "--chunks", "0"]) == 2
    assert "0 chunks" in capsys.readouterr().err
    assert cli.main([*given, "--shape", "nfd-310"]) == 2
    assert "nfd-310m" in capsys.readouterr().err
