"""What eight devices compute is what one does: training, sampling, text, autoencoders."""

import json

import pytest

# Features of a video before its last convolution, in bytes: 9 frames of 48x40 of 8 channels.
WIDEST = 9 * 48 * 40 * 8 * 4


@pytest.mark.parametrize(
    ("table", "rows"), [("few", 3), pytest.param("rest", 10, marks=pytest.mark.slow)]
)
def test_meshes_compute_what_one_device_does(run_python, table, rows):
    """In float32: sums over devices are taken in another order. Noise has the same bits."""
    done = run_python("-m", "tests.parallel.everywhere", table, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == rows
    for row in found:
        what = f"{row.pop('what')} on {row.pop('mesh')}: {row}"
        assert row.pop("noise", 0) == 0, what
        # A device has an eighth of the products, and what is not divided; no videos of another
        # branch of guidance.
        assert row.pop("operations", 0) < 0.22, what
        # Keys and values of the attention within latent frames, and the frames at the end.
        assert row.pop("gathered", 0) < WIDEST, what
        assert row.pop("frames", 0) <= 1, what
        assert row and max(row.values()) < 1e-5, what


@pytest.mark.slow
def test_no_array_of_a_training_step_is_copied_whole(run_python):
    """XLA warns of it where neighbours are split in ways that it cannot exchange piece by piece."""
    meshes = ("data=2,fsdp=4", "fsdp=4,sequence=2")
    done = run_python("-m", "tests.parallel.compiled", "nano", *meshes, check=True)
    assert done.stdout.split() == list(meshes)
    said = [line for line in done.stderr.splitlines() if "rematerialization" in line]
    assert not said, "\n".join(said)
