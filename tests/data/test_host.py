"""Clips by index, stored and rendered, and the batches made of them."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.data.host import HostBatches, HostSource
from jvdm.data.tfds import TfdsSource, materialise
from jvdm.errors import CheckpointError, ConfigError
from jvdm.parallel.mesh import data_mesh
from jvdm.world.records import TRUTHS, WorldSource
from jvdm.world.scene import World

pytest.importorskip("grain")
pytest.importorskip("tensorflow_datasets")

WORLD = World(16, 24, 5, supersample=1)
SOURCE = WorldSource(WORLD, "train", 3, 13, truths=("objects", "depth", "flow"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    val = WorldSource(WORLD, "val", 0, 2, truths=SOURCE.truths)
    return materialise(tmp_path_factory.mktemp("datasets"), [SOURCE, val])


def leaves(record):
    numbers = {name: value for name, value in record.items() if name != "caption"}
    return [np.asarray(leaf) for leaf in jax.tree.leaves(numbers)]


def test_stored_and_rendered_clips_are_the_same_arrays(stored):
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(str(stored))
    found = builder.as_data_source("train")
    assert len(found) == len(SOURCE) == 10
    for index in (0, 4, 9):
        ours, theirs = SOURCE[index], found[index]
        assert theirs["index"] == ours["index"] == 3 + index
        assert theirs["caption"].decode() == ours["caption"]
        for one, other in zip(leaves(ours), leaves(theirs), strict=True):
            np.testing.assert_array_equal(one, other)
    assert ours["video"].dtype == theirs["video"].dtype == np.uint8
    assert ours["flow"]["forward"].shape == (4, 16, 24, 2)


def test_the_same_index_gives_the_same_clip_in_any_range_and_order():
    later = WorldSource(WORLD, "train", 8, 9, truths=SOURCE.truths)
    for one, other in zip(leaves(later[0]), leaves(SOURCE[5]), strict=True):
        np.testing.assert_array_equal(one, other)
    other_split = WorldSource(WORLD, "test", 8, 9, truths=SOURCE.truths)
    assert not np.array_equal(other_split[0]["video"], SOURCE[5]["video"])
    with pytest.raises(IndexError):
        SOURCE[10]


def test_every_truth_has_a_name_that_works():
    record = WorldSource(WORLD, truths=tuple(TRUTHS))[0]
    assert TRUTHS.keys() <= record.keys()
    assert all(np.isfinite(leaf).all() for leaf in leaves(record))


def test_a_dataset_is_not_written_twice(stored):
    before = {path: path.stat().st_mtime_ns for path in stored.iterdir()}
    val = WorldSource(WORLD, "val", 0, 2, truths=SOURCE.truths)
    assert materialise(stored.parents[2], [SOURCE, val]) == stored
    assert {path: path.stat().st_mtime_ns for path in stored.iterdir()} == before


def test_neither_writing_nor_reading_imports_tensorflow(tmp_path, run_python):
    """A TensorFlow that cannot be imported is installed for the whole process."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('tensorflow')")
    code = (
        "import sys; from jvdm.data import tfds; from jvdm.data.host import HostBatches\n"
        "from jvdm.world.scene import World; from jvdm.world.records import WorldSource\n"
        f"made = tfds.materialise({str(tmp_path)!r}, [WorldSource(World(8, 8, 2), stop=4)])\n"
        "batches = HostBatches(tfds.TfdsSource(made).open(), 2, seed=0, threads=1)\n"
        "print(next(batches)['video'].shape); assert 'tensorflow' not in sys.modules"
    )
    done = run_python("-c", code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and "(2, 2, 8, 8, 3)" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: WorldSource(WORLD, start=4, stop=4), "empty"),
        (lambda: WorldSource(WORLD, truths=("smell",)), "smell is unknown.*depth"),
        (lambda: TfdsSource(Path("/nonexistent")).open(), "no clips of split 'train'"),
        (lambda: materialise("/tmp", [SOURCE, SOURCE]), "one range per split"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_an_unknown_split_is_named(stored):
    with pytest.raises(ConfigError, match="no clips of split 'test'"):
        TfdsSource(stored, "test").open()


def batches(records, saved=None, *, batch_size=4, seed: int | None = 1, threads=2):
    return HostBatches(records, batch_size, seed, threads, saved)


def take(iterator, count):
    return [next(iterator)["video"] for _ in range(count)]


def test_stored_and_rendered_clips_make_the_same_batches(stored):
    ours, theirs = batches(SOURCE), batches(TfdsSource(stored).open())
    for _ in range(4):
        one, other = next(ours), next(theirs)
        assert one.keys() == other.keys() == {"video", "tokens"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_an_epoch_shows_every_clip_once_in_an_order_of_its_own():
    known = [SOURCE[index]["video"].tobytes() for index in range(10)]

    def order(seed):
        shown = np.concatenate(take(batches(SOURCE, batch_size=5, seed=seed), 4))
        return [known.index(clip.tobytes()) for clip in shown]

    assert order(None) == [*range(10), *range(10)]
    first, second = order(1)[:10], order(1)[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and order(2) != order(1) and order(1) == order(1)


@pytest.mark.parametrize("position", [0, 1, 3])
def test_saved_batches_continue_exactly(position):
    whole = batches(SOURCE)
    take(whole, position)
    saved = whole.saved()
    expected = take(whole, 3)
    again = batches(SOURCE, saved=saved, threads=1)
    np.testing.assert_array_equal(take(again, 3), expected)


def test_hosts_read_their_rows_of_the_batches_of_one_and_go_on_from_its_position():
    whole = batches(SOURCE)
    take(whole, 2)
    saved, expected = whole.saved(), take(whole, 3)
    for rows in ([0, 2], [1, 3], [0, 1, 2, 3]):
        mine = HostBatches(SOURCE, 4, 1, 1, saved, rows)
        np.testing.assert_array_equal(take(mine, 3), [batch[rows] for batch in expected])
    assert json.loads(mine.saved())["batches"] == 5


def test_a_position_in_other_clips_is_refused():
    saved = batches(SOURCE).saved()
    assert json.loads(saved)["clips"] == SOURCE.digest()
    with pytest.raises(CheckpointError, match="not those that the checkpoint"):
        batches(WorldSource(WORLD, "train", 4, 14), saved=saved)


def test_a_place_that_an_older_version_noted_is_named_as_such():
    """The clips are the same, so they are not to blame."""
    older = json.dumps({"iterator": {"next_index": 3}, "clips": SOURCE.digest()}).encode()
    with pytest.raises(CheckpointError, match="of an older jvdm.*clips are the same.*--start-from"):
        batches(SOURCE, saved=older)


def test_for_records_that_are_none_the_next_ones_stand_and_continue():
    class Holes:
        shape = SOURCE.shape

        def digest(self):
            return "holes"

        def __len__(self):
            return 10

        def __getitem__(self, index):
            return None if index % 3 == 0 else SOURCE[index]

    whole = batches(Holes(), batch_size=3, seed=None)
    good = [1, 1, 2, 4, 4, 5]
    shown = np.concatenate(take(whole, 2))
    np.testing.assert_array_equal(shown, [SOURCE[index]["video"] for index in good])
    saved = whole.saved()
    expected = take(whole, 2)
    np.testing.assert_array_equal(
        take(batches(Holes(), batch_size=3, seed=None, saved=saved), 2), expected
    )


def test_the_step_sees_frames_in_0_to_1_split_over_the_devices():
    source = HostSource(SOURCE, batch_size=4, seed=None)
    mesh = data_mesh(4)
    data = source.feed(source.start(0, None, mesh))
    draw = jax.jit(lambda data, step: source.draw(data, step, 4), donate_argnums=0)
    for turn in range(5):
        batch, data = draw(data, jnp.int32(turn))
        clip = SOURCE[turn * 4 % 10]
        np.testing.assert_allclose(batch.video[0], clip["video"] / np.float32(255), rtol=1e-6)
        np.testing.assert_array_equal(batch.tokens[0], clip["tokens"])
        data = source.feed(data)
    assert len(data.video.sharding.device_set) == 4


def test_another_batch_size_is_refused():
    source = HostSource(SOURCE, batch_size=4)
    data = source.start(0, None, data_mesh(1))
    with pytest.raises(ConfigError, match="batch size is 8, the source's 4"):
        source.draw(data, jnp.int32(0), 8)
    with pytest.raises(ConfigError, match="cannot be split over 4 devices"):
        HostSource(SOURCE, batch_size=6).start(0, None, data_mesh(4))
