"""A stream over several devices is that of one, and goes on on another number of them."""

import json


def test_streams_over_meshes_are_those_of_one_device_and_go_on_elsewhere(run_python, weights):
    """In float32: sums over devices are taken in another order, which may turn a byte by one."""
    command = ("-m", "tests.generate.streams_on_meshes", str(weights))
    clip, *rows, refused = map(json.loads, run_python(*command, check=True).stdout.splitlines())
    assert clip["latents"] < 1e-5, clip
    assert [row["what"] for row in rows] == ["wave", "cached"]
    for row in rows:
        assert row["frames"] <= 1 and row["to all"] <= 1 and row["to one"] <= 1, row
        assert row["window"] < 1e-5, row
        # Products of tokens are divided, those of the few noise levels are not.
        assert row["operations"] < {"wave": 0.9, "cached": 0.6}[row["what"]], row
        assert row["compiled again"] == 0, row
    assert "a stream is one video; split its tokens: --mesh sequence" in refused["refused"]
