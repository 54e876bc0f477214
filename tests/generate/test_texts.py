"""A prompt is encoded once; where memory is short its encoder is gone before denoising."""

import dataclasses
import os
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.cache import cache_folder
from jvdm.errors import ConfigError
from jvdm.pipeline import loading, programs, texts
from jvdm.products import device_bytes
from tests.generate import nano

PROMPT, OTHER = "a red ball rolls to the left", "a small blue box rests"
LATENT: dict[str, Any] = {"progress": False, "output_type": "latent", "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return nano.write_weights(tmp_path_factory.mktemp("nano"))


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A cache of the test's own; states of small encoders are kept on disk where a test says so."""
    monkeypatch.setenv("JVDM_HOME", str(tmp_path / "home"))


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(texts, "SMALLEST_BYTES", 0)


@pytest.fixture
def encoded(monkeypatch):
    """Returns the list of ids that the text encoder is given from now on."""
    program, found = programs.read_text, []

    def noted(system, params, ids, mesh=None):
        found.append(ids)
        return program(system, params, ids, mesh=mesh)

    monkeypatch.setattr(programs, "read_text", noted)
    return found


def load(folder, **settings):
    return jvdm.load(folder, dtype="float32", progress=False, **settings)


def files():
    return sorted((cache_folder() / "texts").glob("*"))


def held_on_device():
    """Returns how many arrays there are of the shape of the encoder's words, which no other has."""
    shape = (len(nano.TEXT.tokenizer.vocabulary), nano.TEXT.width)
    return sum(array.shape == shape for array in jax.live_arrays())


def test_a_prompt_is_encoded_once_whatever_else_is_asked(folder, encoded):
    pipe = load(folder)
    first = np.asarray(pipe(PROMPT, **LATENT))
    assert [len(ids) for ids in encoded] == [1, 1]  # that of no prompt, and this one
    assert np.array_equal(pipe(PROMPT, **LATENT), first)
    assert len(encoded) == 2
    both = np.asarray(pipe([OTHER, PROMPT], **dict(LATENT, seed=[1, 0])))
    assert len(encoded) == 3  # OTHER alone
    assert np.abs(both[1:] - first).max() < 1e-5
    pipe(PROMPT, negative_prompt=OTHER, switch={"row1": OTHER}, **LATENT)
    assert len(encoded) == 3 and not files()  # a small encoder is as fast as a file


def test_states_are_those_of_the_prompt_alone(folder):
    """They are what the encoder says of the whole batch, and bit by bit the same in any other."""
    pipe = load(folder)
    ids, _ = pipe.system.text.read([PROMPT, "", OTHER])
    whole = pipe.system.text.apply({"params": pipe.params["text"]}, jnp.asarray(ids))
    (together,) = pipe.states(ids)
    np.testing.assert_allclose(together.states, whole[0], atol=1e-6)
    assert np.array_equal(together.lengths, whole[1])
    (alone,) = load(folder).states(ids[2:])
    assert np.array_equal(alone.states, together.states[2:])


def test_parameters_put_in_the_place_of_others_are_used(folder):
    """Nothing is known of them, so no state of theirs is kept or taken."""
    pipe = load(folder)
    first = np.asarray(pipe(PROMPT, **LATENT))
    half = jax.tree.map(lambda leaf: leaf / 2, pipe.params["text"])
    other = dataclasses.replace(pipe, params={**pipe.params, "text": half})
    assert not np.array_equal(other(PROMPT, **LATENT), first)
    assert np.array_equal(pipe(PROMPT, **LATENT), first)


def test_a_dropped_encoder_is_gone_while_videos_are_made(folder, monkeypatch):
    before, kept = held_on_device(), load(folder)
    assert held_on_device() == before + 1
    expected = np.asarray(kept(PROMPT, switch={"row1": OTHER}, **LATENT))
    monkeypatch.setenv("JVDM_TEXT_ENCODER", "drop")
    loads, loaded, counts = [], loading._loaded, []

    def noted(folder, manifest, system, mesh, expected):
        loads.append(list(expected))
        return loaded(folder, manifest, system, mesh, expected)

    monkeypatch.setattr(loading, "_loaded", noted)
    pipe = load(folder)
    assert "text" not in pipe.params and loads == [["model", "vae"]]

    def look(row, latents):
        counts.append(held_on_device())

    made = pipe(PROMPT, switch={"row1": OTHER}, callback=look, **LATENT)
    assert counts == [before + 1] * 3  # that of `kept` alone
    assert np.array_equal(made, expected)
    assert loads[1:] == [["text"]]  # once for the three prompts
    pipe(PROMPT, **LATENT)
    assert len(loads) == 2
    video = pipe("a green box falls", seed=0, progress=False)
    assert len(loads) == 3 and held_on_device() == before + 1
    assert video.record is not None and video.record["weights"]["text_encoder"] == "dropped"
    other = kept(PROMPT, seed=0, progress=False).record
    assert other is not None and other["weights"]["text_encoder"] == "kept"


@pytest.mark.parametrize(
    ("said", "share", "keeps"),
    [("", 1.0, True), ("auto", 0.9, False), ("keep", 0.1, True), ("drop", 9.0, False)],
)
def test_memory_says_whether_the_encoder_stays(monkeypatch, said, share, keeps):
    """It needs room for all networks and once more for itself."""
    shapes = loading._held_shapes(nano.SYSTEM)
    sizes = {name: device_bytes(tree) for name, tree in shapes.items()}
    room = share * (sum(sizes.values()) + sizes["text"])
    monkeypatch.setattr(loading, "free_device_memory", lambda device: int(np.ceil(room)))
    monkeypatch.setenv("JVDM_TEXT_ENCODER", said)
    assert loading.keeps_text(nano.SYSTEM, None) == keeps


def test_another_word_than_these_is_refused(folder, monkeypatch):
    monkeypatch.setenv("JVDM_TEXT_ENCODER", "away")
    with pytest.raises(ConfigError, match="'away'.*auto or keep or drop"):
        load(folder)


def test_a_broken_encoder_is_refused_before_it_is_needed(folder, tmp_path, monkeypatch):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "text.safetensors").unlink()
    monkeypatch.setenv("JVDM_TEXT_ENCODER", "drop")
    with pytest.raises(jvdm.WeightsError, match="text"):
        load(broken)


def test_another_process_finds_the_states_and_loads_no_encoder(
    folder, tmp_path, monkeypatch, encoded, on_disk
):
    first = np.asarray(load(folder)(PROMPT, **LATENT))
    assert len(files()) == len(encoded) == 2
    monkeypatch.setenv("JVDM_TEXT_ENCODER", "drop")
    pipe = load(folder)
    monkeypatch.setattr(loading, "_loaded", None)  # nothing is loaded any more
    assert np.array_equal(pipe(PROMPT, **LATENT), first)
    assert len(encoded) == 2
    monkeypatch.undo()


def test_states_of_other_weights_or_types_are_not_taken(folder, tmp_path, encoded, on_disk):
    def read(place, dtype="float32"):
        pipe = jvdm.load(place, dtype=dtype, progress=False)
        pipe.states(pipe.system.text.read([PROMPT])[0])
        return len(encoded), len(files())

    assert read(folder) == (1, 1)
    assert read(folder, "bfloat16") == (2, 2)
    other = shutil.copytree(folder, tmp_path / "other")
    params = nano.drawn(nano.SYSTEM.init_denoiser, jax.random.key(1))["text"]
    nano.safetensors.save(other / "text.safetensors", params, dtype="float32")
    assert read(other) == (3, 3)
    assert read(shutil.copytree(folder, tmp_path / "same")) == (3, 3)  # these, elsewhere


def test_a_broken_file_is_said_and_made_again(folder, encoded, on_disk):
    first = np.asarray(load(folder)(PROMPT, **LATENT))
    for file in files():
        os.truncate(file, 40)
    with pytest.warns(UserWarning, match="made again"):
        again = load(folder)(PROMPT, **LATENT)
    assert np.array_equal(again, first) and len(encoded) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder)(PROMPT, **LATENT)
    assert len(encoded) == 4


def test_memory_and_disk_are_bounded(folder, monkeypatch, encoded, on_disk):
    pipe = load(folder)
    (states,) = pipe.states(pipe.system.text.read([PROMPT])[0])
    one = sum(leaf.nbytes for leaf in (states.states, states.lengths))
    monkeypatch.setattr(texts, "HELD_BYTES", 2.5 * one)
    size = files()[0].stat().st_size
    monkeypatch.setenv(texts.SETTING, str(3.5 * size / 1e9))
    for count, prompt in enumerate(["a", "the", "red", "blue", "ball"]):
        pipe.states(pipe.system.text.read([prompt])[0])
        assert len(pipe.texts.held) == 2 and len(files()) == min(count + 2, 3)
    known = len(encoded)
    pipe.states(pipe.system.text.read(["ball", "blue"])[0])
    assert len(encoded) == known
    pipe.states(pipe.system.text.read([PROMPT])[0])  # the oldest
    assert len(encoded) == known + 1
    monkeypatch.setenv(texts.SETTING, "0")
    assert not load(folder).texts.on_disk
    monkeypatch.setenv(texts.SETTING, "much")
    with pytest.raises(ConfigError, match="'much'"):
        load(folder)
