import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.evaluation.estimates import Measure
from jvdm.evaluation.measure import measure_known_frames, measure_reconstruction
from jvdm.evaluation.report import SOURCES, reconstruction, summary, table


@pytest.fixture
def truth(rng):
    """Two clips of nine frames: in the first something moves, the second stands still."""
    frames = np.full((2, 9, 16, 16, 3), 0.4)
    for frame in range(9):
        frames[0, frame, 4:10, frame : frame + 6] = [0.9, 0.1, 0.1]
    frames[1, :, 4:10, 4:10] = [0.1, 0.8, 0.1]
    return jnp.asarray(frames, jnp.float32)


def test_known_frames_are_judged_against_the_best_still(truth):
    known, judged = jnp.arange(9) < 3, jnp.arange(9) >= 5
    wrong = truth.at[:, 5:].add(0.01)
    found = measure_known_frames(wrong, truth, truth, known, judged, jnp.array([2, 2]))
    assert found["model"].counted.tolist() == [True, False]  # the second does not move
    np.testing.assert_allclose(found["model"].value, 40.0, atol=1e-2)
    np.testing.assert_allclose(found["kept"].value, 100.0)
    assert found["reconstruction"].value[0] == 100.0
    far = found["copy"].value[0]
    near = measure_known_frames(wrong, truth, truth, known, judged, jnp.array([2, 8]))
    assert near["copy"].value[0] > far
    np.testing.assert_allclose(found["gain"].value[0], 40.0 - far, atol=1e-2)


def test_psnr_is_pooled_over_clips(truth):
    error = jnp.array([0.1, 0.3])[:, None, None, None, None]
    rows = reconstruction(measure_reconstruction(truth + error, truth))
    pooled = -10 * np.log10((0.01 + 0.09) / 2)
    for name in ("PSNR", "object PSNR", "first frame PSNR"):
        assert rows[name]["mean"] == pytest.approx(pooled, abs=1e-2)
        assert rows[name]["low"] <= rows[name]["mean"] <= rows[name]["high"]
    assert list(rows) == ["PSNR", "object PSNR", "first frame PSNR", "SSIM"]


def batch(shift):
    every = np.ones(4, bool)
    features = np.random.default_rng(shift).standard_normal((4, 3))
    values = {"count": every, "frame change": np.full(4, 0.1 + shift), "gravity": np.zeros(4)}
    measures = {name: Measure(value, every) for name, value in values.items()}
    measures["gravity"] = Measure(np.zeros(4), ~every)
    coding = {"square error": Measure(np.full(4, 0.01), every)}
    return {
        "measured": {source: (measures, features) for source in SOURCES},
        "coding": coding,
        "known": {"first frame": {"model": Measure(np.full(4, 30.0), every)}},
    }


def test_batches_become_one_summary():
    data = summary("a title", [batch(part) for part in range(3)])
    assert data["prompts"] == 12
    low = round(0.025 ** (1 / 12), 5)  # all of twelve are right
    assert data["measures"]["count"]["samples"] == {"mean": 1, "low": low, "high": 1, "count": 12}
    assert "gravity" not in data["measures"]  # measured nowhere
    ratio = data["measures"]["frame change, of reconstruction"]["samples"]
    assert ratio["mean"] == pytest.approx(1.0)
    assert data["known frames"]["first frame"]["model"]["mean"] == 30.0
    assert set(data["reader Frechet distance"]) == set(SOURCES)


def test_a_table_names_what_is_missing():
    row = {"true": {"mean": 0.5, "low": 0.25, "high": 0.75, "count": 8}}
    lines = table("title", {"count": row, "verb": {}}, ("true", "samples")).splitlines()
    assert lines[0] == "title" and lines[1].split() == ["true", "samples"]
    assert lines[2].split() == ["count", "0.500", "[0.250,", "0.750]", "8", "-"]
    assert len({len(line) for line in lines[1:]}) == 1
