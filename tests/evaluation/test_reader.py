import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.evaluation.reader import (
    Reader,
    Reading,
    answers_for,
    attributes_right,
    describe,
    present_colors,
    shrink,
)
from jvdm.evaluation.reader_training import (
    ClipReading,
    ReaderClips,
    ReadingPreview,
    cross_entropies,
    degrade,
)
from jvdm.evaluation.readers import load_reader, measure_reading, read
from jvdm.experiment import Experiment
from jvdm.parallel.mesh import data_mesh
from jvdm.products import product_flops
from jvdm.training.export import export
from jvdm.training.objective import Objective, Source, TrainCall
from jvdm.training.showing import write_preview
from jvdm.vae.video_vae import VideoVAE
from jvdm.weights.folder import Defaults
from jvdm.weights.package import Packaging
from jvdm.world.scene import CAMERAS, COLORS, SPEEDS, VERBS, Facts, World
from tests.generate import nano
from tests.generate.nano import drawn

WORLD = World(height=64, width=64, num_frames=9, fps=6.0, substeps=12, supersample=1)
READER = Reader(widths=(8, 16), blocks=1, hidden=32, dtype="float32")
PACKAGE = Packaging("nano", Defaults(64, 64, 9, 6.0))
OBJECTIVE = ClipReading(READER, WORLD, held_out=8)
CLIPS = ReaderClips(WORLD)
DRAW = jax.jit(lambda step: CLIPS.draw(CLIPS.start(0, None, data_mesh(1)), step, 4)[0])


def some_facts():
    slots = jnp.array([[1, 4, 6], [3, 2, 0]])
    zero = jnp.zeros((2, 9, 3, 3))
    return Facts(
        active=jnp.array([[True, True, False], [True, True, True]]),
        shape=slots % 3,
        size=slots % 2,
        color=slots,
        verb=jnp.array([[1, 0, 0], [5, 2, 3]]),
        speed=jnp.array([[2, 0, 0], [1, 1, 0]]),
        camera=jnp.array([0, 4]),
        position=zero,
        velocity=zero,
    )


def perfect(facts):
    """Logits that say exactly what is true."""

    def by_color(labels, count):
        told = jax.nn.one_hot(labels, count) * facts.active[..., None]
        return 9.0 * jnp.einsum("bsc,bsn->bcn", jax.nn.one_hot(facts.color, len(COLORS)), told)

    answers = {
        name: by_color(getattr(facts, name), count)
        for name, count in (("shape", 3), ("size", 2), ("verb", len(VERBS)), ("speed", len(SPEEDS)))
    }
    camera = 9.0 * jax.nn.one_hot(facts.camera, len(CAMERAS))
    present = 18.0 * present_colors(facts) - 9.0
    return Reading(present=present, camera=camera, features=jnp.zeros((2, 4)), **answers)


def test_objective_and_source_keep_their_protocols():
    assert isinstance(OBJECTIVE, Objective) and isinstance(ReaderClips(WORLD), Source)
    Experiment("reader", OBJECTIVE, ReaderClips(WORLD))


def test_a_perfect_reading_is_right_in_everything():
    facts = some_facts()
    right = attributes_right(perfect(facts), facts)
    for name, (ok, counted) in right.items():
        assert ok[counted].all(), name
    # Rest and fall have no speed, nor has an object whose speed is between the words.
    assert right["speed"][1].tolist() == [[True, False, False], [False, True, False]]
    assert all(value < 0.01 for value in cross_entropies(perfect(facts), facts).values())
    measures = measure_reading(perfect(facts), facts)
    assert all(bool(jnp.where(m.counted, m.value, True).all()) for m in measures.values())


def test_one_wrong_shape_is_found_where_it_is():
    facts = some_facts()
    reading = perfect(facts)
    wrong = reading._replace(shape=reading.shape.at[0, 4].set(jnp.array([0.0, 0.0, 9.0])))
    ok, counted = attributes_right(wrong, facts)["shape"]
    assert (ok | ~counted).tolist() == [[True, False, True], [True, True, True]]
    measures = measure_reading(wrong, facts)
    assert measures["reader all"].value.tolist() == [False, True]
    assert measures["verbs"].value.all()


def test_an_extra_colour_is_a_wrong_set():
    facts = some_facts()
    reading = perfect(facts)
    wrong = reading._replace(present=reading.present.at[1, 6].set(9.0))
    assert attributes_right(wrong, facts)["colors"][0].tolist() == [True, False]


def test_answers_are_taken_by_colour():
    values = jnp.arange(14.0).reshape(1, 7, 2)
    assert answers_for(values, jnp.array([[6, 0]])).tolist() == [[[12.0, 13.0], [0.0, 1.0]]]


def test_a_reading_in_words():
    reading = jax.tree.map(lambda x: np.asarray(x)[0], perfect(some_facts()))
    assert describe(reading) == "large green box moves left; small purple box rests; static"


def test_nine_frames_from_first_to_last_are_shrunk():
    time = jnp.broadcast_to(jnp.arange(33.0)[None, :, None, None, None], (1, 33, 128, 128, 3))
    assert shrink(time)[0, :, 5, 5, 0].tolist() == list(range(0, 33, 4))
    odd = jnp.broadcast_to(jnp.arange(9.0)[None, :, None, None, None], (1, 9, 40, 48, 3))
    np.testing.assert_allclose(shrink(odd)[0, :, 9, 9, 0], jnp.arange(9.0), atol=1e-5)


def test_degraded_clips_stay_in_range_and_differ(key):
    frames = jax.random.uniform(key, (4, 9, 16, 16, 3))
    worse = degrade(frames, key)
    assert worse.min() >= 0 and worse.max() <= 1
    strength = jnp.abs(worse - frames).mean((1, 2, 3, 4))
    assert len(set(strength.tolist())) == 4 and (strength > 0).all()


def test_batches_follow_from_the_step():
    first, again, next_one = DRAW(0), DRAW(0), DRAW(1)
    assert first.video.shape == (4, 9, 64, 64, 3) and first.facts.position.shape == (4, 9, 3, 3)
    np.testing.assert_array_equal(first.video, again.video)
    assert (jnp.abs(first.video - next_one.video).mean((1, 2, 3, 4)) > 1e-3).all()


def test_operations_grow_with_the_batch():
    source = ReaderClips(WORLD)
    params = jax.eval_shape(OBJECTIVE.init, jax.random.key(0))
    call = TrainCall(jnp.int32(0), jax.random.key(0), params, {})

    def forward(count):
        data = source.start(0, None, data_mesh(1))
        batch = jax.eval_shape(lambda: source.draw(data, jnp.int32(0), count)[0])
        return product_flops(OBJECTIVE.loss, params, batch, call)

    assert 3 * forward(4) == 4 * 3 * forward(1) > 1e8


@pytest.mark.slow
def test_a_share_of_a_batch_is_reconstructed(tmp_path):
    vae = VideoVAE(4, (8, 16), (1, 1, 1, 1), (1, 1, 1, 1))
    source = ReaderClips(WORLD, vae, nano.write_weights(tmp_path), reconstructed=0.25)
    data = source.start(0, None, data_mesh(1))
    batch = jax.jit(lambda data: source.draw(data, jnp.int32(0), 4)[0])(data)
    same = DRAW(0)
    np.testing.assert_array_equal(batch.facts.color, same.facts.color)
    apart = jnp.abs(batch.video - same.video).mean((1, 2, 3, 4))
    assert apart[0] > 0.05 and apart[1:].max() < 1e-6


@pytest.mark.slow
def test_the_reader_learns_and_is_read_back(tmp_path, key):
    batch = jax.tree.map(lambda *clips: jnp.concatenate(clips), DRAW(0), DRAW(1))
    params = drawn(OBJECTIVE.init, key)

    @jax.jit
    def step(params, moment, key):
        call = TrainCall(jnp.int32(0), key, params, {})
        (loss, _), slope = jax.value_and_grad(OBJECTIVE.loss, has_aux=True)(params, batch, call)
        moment = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g**2, moment, slope)
        params = jax.tree.map(lambda p, g, m: p - 3e-3 * g / (m**0.5 + 1e-6), params, slope, moment)
        return params, moment, loss, slope

    moment = jax.tree.map(jnp.ones_like, params)
    params, moment, first, slope = step(params, moment, key)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(slope)), "a parameter has no effect"
    for index in range(25):
        params, moment, last, _ = step(params, moment, jax.random.fold_in(key, index))
    assert last < 0.7 * first

    reached = export(OBJECTIVE, PACKAGE, tmp_path, params)
    write_preview(tmp_path / "sheet.png", ReadingPreview(), OBJECTIVE, params, None)
    assert reached["camera_accuracy"] > 0.0 and reached["weights"] == str(tmp_path)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    reader, again = load_reader(tmp_path, "float32")
    assert dataclasses.replace(reader) == READER
    before, after = (read(READER, tree, batch.video).verb for tree in (params, again))
    np.testing.assert_allclose(before, after, atol=0.05)  # stored in 16 bits
