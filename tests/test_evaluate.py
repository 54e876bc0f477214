import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from jvdm import evaluate
from jvdm.errors import ConfigError, WeightsError
from jvdm.evaluate import EvaluateOptions
from jvdm.evaluation.held_out import SETS, draw, film, part_of, prompts
from jvdm.evaluation.reader import Reader
from jvdm.pipeline import loading
from jvdm.values import to_data
from jvdm.weights import read_manifest, safetensors, write_manifest
from jvdm.world.captions import caption_text
from jvdm.world.scene import COLORS, HELD_OUT_PAIRS, SHAPES, World
from tests.evaluation.drawn import track_clips
from tests.generate import nano

READER = Reader(widths=(4, 8), blocks=1, hidden=16, dtype="float32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random model with a random reader."""
    folder = nano.write_weights(tmp_path_factory.mktemp("judged"))
    manifest = read_manifest(folder)
    components = {**manifest.components, "reader": to_data(READER)}
    write_manifest(folder, dataclasses.replace(manifest, components=components))
    params = nano.drawn(READER.init, jax.random.key(1), jnp.zeros((1, 9, 64, 64, 3)))["params"]
    safetensors.save(folder / "reader.safetensors", params)
    return folder


@pytest.mark.slow
def test_evaluation_is_the_same_twice_and_puts_floors_beside_samples(
    weights, tmp_path, monkeypatch
):
    options = EvaluateOptions(
        weights=str(weights),
        sets=("B", "R"),
        known_frame_sets=("B",),
        num_prompts=4,
        batch_size=2,
        output=tmp_path,
    )
    result = evaluate.run(options)
    loads, loaded = [], loading._loaded
    monkeypatch.setattr(
        loading, "_loaded", lambda *given: (loads.append(list(given[-1])), loaded(*given))[1]
    )
    monkeypatch.setenv("JVDM_TEXT_ENCODER", "drop")
    again = evaluate.run(options)
    assert result["sets"] == again["sets"]
    assert loads == [["model", "vae"], ["text"]]  # once for four batches of two sets
    assert json.loads((tmp_path / "evaluation.json").read_text())["sets"] == again["sets"]

    both, told = result["sets"]["B"], result["sets"]["R"]
    for name in ("count", "permanence", "verb", "reader all", "frame change"):
        assert set(both["measures"][name]) == {"true", "reconstruction", "samples"}
    assert "relation" in told["measures"] and "relation" not in both["measures"]
    assert told["known frames"] == {}
    first = both["known frames"]["first frame"]
    assert first["kept"] == first["kept, reconstruction"]  # clean latents stay as they are
    assert set(both["known frames"]) == {"first frame", "first and last"}  # three latent frames

    text = evaluate.text(result)
    assert "B: two objects" in text and "reader Frechet distance" in text
    sheets = {path.name for path in tmp_path.glob("*.png")}
    assert {"B_samples.png", "B_first_frame.png", "R_reconstruction.png"} <= sheets
    assert len(result["outputs"]) == 1 + len(sheets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ("A", "Q")}, "no prompt set 'Q'; sets are A: one object"),
        ({"num_prompts": 100}, "100 prompts in batches of 64; .*use 64 prompts"),
        ({"num_prompts": 8}, "8 prompts in batches of 64"),
        ({"batch_size": 0}, "batches of 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        evaluate.run(EvaluateOptions(weights="nowhere/at/all", output=tmp_path, **options))


def test_a_folder_without_a_reader_is_refused_as_reader(tmp_path):
    folder = nano.write_weights(tmp_path)
    options = EvaluateOptions(str(folder), reader=folder, output=tmp_path)
    with pytest.raises(WeightsError, match="holds vae, model, text; a reader is needed"):
        evaluate.run(options)


WORLD = World(height=64, width=64, num_frames=9, supersample=1)


@pytest.mark.slow
def test_drawn_prompts_are_those_whose_objects_are_seen_and_whose_place_is_told():
    drawn = draw(SETS["R"], WORLD, 8)
    parts = [prompts(SETS["R"], WORLD, start + jnp.arange(8)) for start in range(0, 64, 8)]
    every = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    assert (drawn.relation >= 0).all() and drawn.tokens.shape == (8, 64)
    assert (drawn.facts.active.sum(1) == 2).all()
    first = int((every.tokens == drawn.tokens[0][None]).all(-1).argmax())
    assert every.relation[first] == drawn.relation[0]
    assert part_of(drawn, 2, 3).tokens.tolist() == drawn.tokens[2:5].tolist()
    tracks = track_clips(film(drawn.shot, WORLD), drawn.facts.color, drawn.facts.active)
    assert jnp.where(drawn.facts.active, (tracks.pieces > 0).any(1), True).all()


@pytest.mark.slow
def test_prompts_are_what_their_set_says():
    drawn = {name: prompts(SETS[name], WORLD, jnp.arange(8)) for name in ("C", "H")}
    whole, unseen = drawn["C"].facts, drawn["H"].facts
    assert len(set(whole.active.sum(1).tolist())) > 1 and len(set(whole.camera.tolist())) > 1
    pairs = {
        (COLORS[color], SHAPES[shape])
        for color, shape in zip(unseen.color[:, 0], unseen.shape[:, 0], strict=True)
    }
    assert pairs <= set(HELD_OUT_PAIRS) and (unseen.active.sum(1) == 1).all()
    texts = [caption_text(ids) for batch in drawn.values() for ids in batch.tokens]
    assert len(set(texts)) == 16
    assert (drawn["C"].relation == -1).all()
