"""What eight devices compute is what one does: training, sampling, text, autoencoders.

And a video is the same alone, in a batch and on a mesh, to the bits where docs/devices.md says so.
"""

import json

import pytest

# Features of a video before its last convolution, in bytes: 9 frames of 48x40 of 8 channels.
WIDEST = 9 * 48 * 40 * 8 * 4


@pytest.fixture
def rows_of(run_python):
    """Returns the rows of a table."""

    def rows(table, count, **environment):
        asked = ("-m", "tests.parallel.everywhere", table)
        done = run_python(*asked, check=True, timeout=550, **environment)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(found) == count
        return found

    return rows


@pytest.mark.parametrize(
    ("table", "rows", "share"),
    [
        ("few", 3, 0.22),
        pytest.param("rest", 10, 0.22, marks=pytest.mark.slow),
        pytest.param("more", 22, 0.45, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_meshes_compute_what_one_device_does(rows_of, table, rows, share):
    """In float32: sums over devices are taken in another order. Noise has the same bits."""
    for row in rows_of(table, rows):
        what = f"{row.pop('what')} on {row.pop('mesh')}: {row}"
        assert row.pop("noise", 0) == 0, what
        # A device has an eighth of the products, and what is not divided; no videos of another
        # branch of guidance. Of nine tokens each much is padding, and kernels with changes are
        # made whole (`more`).
        assert row.pop("operations", 0) < share, what
        # Keys and values of the attention within latent frames, and the frames at the end.
        assert row.pop("gathered", 0) < WIDEST, what
        assert row.pop("frames", 0) <= 1, what
        assert row and max(row.values()) < 1e-5, what


@pytest.mark.slow
@pytest.mark.long
def test_a_video_is_the_same_alone_in_a_batch_and_on_a_mesh(rows_of):
    """A device that computes a whole video, or some heads of it, multiplies as one alone does.

    As users compile: with fewer passes of the compiler more bits differ.
    """
    exact = {"data=2", "data=4", "data=8", "sequence=2", "sequence=4", "sequence=8"}
    for row in rows_of("batch", 15, JAX_DISABLE_MOST_OPTIMIZATIONS="0"):
        assert row["frames"] == 0, row
        assert row["latents"] == 0 if row["mesh"] in exact else row["latents"] < 1e-6, row


@pytest.mark.slow
def test_no_array_of_a_training_step_is_copied_whole(run_python):
    """XLA warns of it where neighbours are split in ways that it cannot exchange piece by piece."""
    meshes = ("data=2,fsdp=4", "fsdp=4,sequence=2")
    done = run_python("-m", "tests.parallel.compiled", "nano", *meshes, check=True)
    assert done.stdout.split() == list(meshes)
    said = [line for line in done.stderr.splitlines() if "rematerialization" in line]
    assert not said, "\n".join(said)
