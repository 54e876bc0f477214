"""Copies of published folders as devices hold them: the same bits, faster, and never half."""

import json
import os
import shutil
import warnings

import jax
import numpy as np
import pytest

import jvdm
from jvdm.cache import cache_folder
from jvdm.errors import ConfigError
from jvdm.pipeline import loading
from jvdm.weights import diffusers, folder, kept
from tests.weights.wan_folder import write_wan


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan") / "wan")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Keeps small folders too, in a cache of the test's own."""
    monkeypatch.setattr(kept, "SMALLEST_BYTES", 0)
    monkeypatch.setattr(kept, "SETTLED_S", 0)
    monkeypatch.setenv("JVDM_HOME", str(tmp_path / "home"))


def load(place):
    """Returns pipeline and parameters; every warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = jvdm.load(place, dtype="bfloat16", progress=False)
    return pipe, jax.tree.leaves(pipe.params)


def reads(monkeypatch):
    """Returns the list of published components that are read from now on."""
    read, found = diffusers.read_tensors, []

    def noted(place):
        found.append(place.name)
        return read(place)

    monkeypatch.setattr(diffusers, "read_tensors", noted)
    return found


def files():
    """Returns what is in the cache of weights, by name."""
    root = cache_folder() / "weights"
    return sorted(path.relative_to(root).parts[-1] for path in root.rglob("*") if path.is_file())


def test_the_second_load_reads_the_copy_and_is_the_same(published, monkeypatch):
    pipe, first = load(published)
    assert files() == ["model.safetensors", "source.json", "text.safetensors", "vae.safetensors"]
    found = reads(monkeypatch)
    monkeypatch.setattr(folder, "digest", None)  # nothing is hashed again
    again, second = load(published)
    assert not found and again.arrays == pipe.arrays and again.identity == pipe.identity
    assert "0 unused" in again.arrays["transformer"]
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert len(kept.copies()) == 1


def test_what_it_is_made_of_decides_which_copy_is_read(published, tmp_path, monkeypatch):
    place = tmp_path / "wan"
    shutil.copytree(published, place)
    _, first = load(place)
    found = reads(monkeypatch)
    jvdm.load(place, dtype="float32", progress=False)  # another number type
    assert found and len(kept.copies()) == 2
    file = place / "transformer/diffusion_pytorch_model.safetensors"
    raw = bytearray(file.read_bytes())
    before = file.stat()
    raw[-1] ^= 0x80  # the sign of its last number
    file.write_bytes(raw)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # of equal size and time
    pipe, third = load(place)
    assert (
        pipe.identity["transformer/" + file.name]
        == folder.digests(place)["transformer/" + file.name]
    )
    assert any(not np.array_equal(one, other) for one, other in zip(first, third, strict=True))
    monkeypatch.setattr(kept, "_code", lambda: "other code")
    found.clear()
    load(place)
    assert found and len(kept.copies()) == 4


def test_a_broken_copy_is_said_and_made_again(published):
    _, first = load(published)
    ((place, _),) = kept.copies()
    file = place / "vae.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="is read no more: .*vae.safetensors is truncated"):
        pipe = jvdm.load(published, dtype="bfloat16", progress=False)
    for one, other in zip(first, jax.tree.leaves(pipe.params), strict=True):
        np.testing.assert_array_equal(one, other)
    assert kept.copies()[0][1] > place.joinpath("source.json").stat().st_size
    load(published)


def test_where_nothing_can_be_kept_a_warning_says_so(published, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "save_stored", full)
    with pytest.warns(UserWarning, match="as slowly the next time: .*No space left on device"):
        jvdm.load(published, dtype="bfloat16", progress=False)
    assert files() == []
    monkeypatch.undo()
    monkeypatch.setattr(kept, "SMALLEST_BYTES", 0)
    monkeypatch.setenv("JVDM_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("a file")
    with pytest.warns(UserWarning, match="as slowly the next time"):
        jvdm.load(published, dtype="bfloat16", progress=False)


def test_all_copies_have_a_limit_and_the_oldest_goes(published, tmp_path, monkeypatch):
    places = [tmp_path / name for name in ("one", "two", "three")]
    for place in places:
        shutil.copytree(published, place)
    load(places[0])
    size = kept.copies()[0][1]
    monkeypatch.setenv(kept.SETTING, str(2.5 * size / 1e9))
    for place in (places[1], places[0], places[2]):
        load(place)
        for entry, _ in kept.copies():  # an hour passes
            said, before = entry / kept.SOURCE, (entry / kept.SOURCE).stat().st_mtime - 3600
            os.utime(said, (before, before))
    sources = [
        json.loads((entry / kept.SOURCE).read_text())["source"] for entry, _ in kept.copies()
    ]
    assert sorted(sources) == sorted(map(str, (places[0], places[2])))
    monkeypatch.setenv(kept.SETTING, str(0.5 * size / 1e9))
    with pytest.warns(UserWarning, match="all may have .* raise JVDM_WEIGHTS_CACHE_GB"):
        jvdm.load(places[1], dtype="bfloat16", progress=False)
    assert len(kept.copies()) == 2
    monkeypatch.setenv(kept.SETTING, "0")
    load(places[1])
    monkeypatch.setenv(kept.SETTING, "much")
    with pytest.raises(ConfigError, match="JVDM_WEIGHTS_CACHE_GB is 'much'"):
        load(places[1])


def test_files_that_may_still_change_are_not_kept(published, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SETTLED_S", 3600)
    load(published)
    assert files() == []
    monkeypatch.setattr(kept, "SETTLED_S", 0)
    real = loading.ready

    def slow(*given):
        (tmp_path / "wan/vae/config.json").touch()
        return real(*given)

    shutil.copytree(published, tmp_path / "wan")
    monkeypatch.setattr(loading, "ready", slow)
    load(tmp_path / "wan")
    assert files() == []
