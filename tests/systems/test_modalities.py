"""A system of video and audio, from parameters to both outputs, through the pipeline's programs."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from jvdm import pricing
from jvdm.attention import Dense
from jvdm.errors import ConfigError, DeviceMemoryError, ShapeError
from jvdm.pipeline import Pipeline, Request, programs
from jvdm.pipeline.request import Given
from jvdm.samplers import (
    ClassifierFree,
    GradGuide,
    LagMatrix,
    Projected,
    ShiftedLevels,
    Unguided,
    linspace_levels,
    shift_levels,
    times,
    waves_in_seconds,
)
from jvdm.system import Sampling, System
from jvdm.vae import tiling
from jvdm.weights import Defaults
from tests.generate import nano
from tests.generate.nano import TEXT, VAE, drawn
from tests.samplers.test_guidance_scales import Forgotten

HOP, CHANNELS = 8, 2
SHAPE: Any = FrozenDict(video=(1, 3, 2, 2, 4), audio=(1, 6, 1, 1, 3))
SECONDS = {"video": np.arange(3) / 3, "audio": np.arange(6) / 8}
PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"


class Posterior(NamedTuple):
    mean: Any


class Waves(nn.Module):
    """Codes waves `[B, T, 1, 1, channels]`; an autoencoder as `System` asks for one."""

    strides: tuple[int, ...] = (HOP, 1, 1)
    rate: float = 64.0
    latent_channels: int = 3
    channels: int = CHANNELS

    def setup(self):
        self.down, self.up = nn.Dense(self.latent_channels), nn.Dense(HOP * self.channels)

    def num_frames(self, latents):
        return HOP * latents

    def encode(self, waves):
        parts = waves.reshape(len(waves), -1, 1, 1, HOP * self.channels)
        return Posterior(self.down(parts))

    def decode(self, latents):
        return self.up(latents).reshape(len(latents), -1, 1, 1, self.channels)

    def __call__(self, waves):
        return self.decode(self.encode(waves).mean)


class Both(nn.Module):
    """Predicts velocities of both from both; the carry counts the calls."""

    patch: int = 1
    ports: tuple[str, ...] = ()
    policy: Any = Dense()
    dtype: str = "float32"

    def start(self, sizes, positions, batch):
        assert sizes == {"video": (3, 2, 2), "audio": (6, 1, 1)} and len(positions["audio"]) == 6
        return jnp.zeros((), jnp.int32) + batch

    @nn.compact
    def __call__(self, x, call, conditions, carry):
        text = conditions.text.states.mean(1)
        heard = {name: value.mean((1, 2, 3)) for name, value in sorted(x.items())}
        both = nn.tanh(nn.Dense(8)(jnp.concatenate([*heard.values(), text], -1)))
        said = {}
        for name, value in sorted(x.items()):
            t = jnp.broadcast_to(call[name].t[..., None, None, None], value.shape[:-1] + (1,))
            every = jnp.broadcast_to(both[:, None, None, None], value.shape[:-1] + (8,))
            seen = jnp.concatenate([value, t, every], -1)
            said[name] = nn.Dense(value.shape[-1], name=name)(seen)
        return said, carry


LEVELS = {"video": shift_levels(linspace_levels(3), 12.0), "audio": linspace_levels(3)}
SAMPLING = Sampling(
    levels={"video": ShiftedLevels(3, 12.0), "audio": ShiftedLevels(3, 1.0)},
    matrix=LagMatrix(1),
    guidance={"video": Projected(3.0, momentum=-0.5), "audio": ClassifierFree(2.0)},
)
SYSTEM = System(TEXT, Both(), FrozenDict(video=VAE, audio=Waves()), sampling=SAMPLING)
PARAMS = drawn(SYSTEM.init, jax.random.key(0))
MANIFEST = dataclasses.replace(nano.MANIFEST, defaults=Defaults(16, 16, 9, 12.0))
PIPE = Pipeline(SYSTEM, PARAMS, MANIFEST)


def latents_of(system=SYSTEM, text=PROMPT, seed=0, **settings):
    """The latents before the first row and after the last one, and the carry."""
    pipe = dataclasses.replace(PIPE, system=system)
    run = pipe.start(pipe.prepare(Request(prompt=text, seed=seed, **settings)))
    start: Any = jax.tree.map(np.asarray, run.state.x)
    state = pipe.advance(run).state
    end: Any = jax.tree.map(np.asarray, state.x)
    return start, end, state.carry


def test_prompts_become_video_and_waves_that_hear_each_other():
    start, end, (memory, carry) = latents_of()
    assert {name: x.shape for name, x in end.items()} == dict(SHAPE)
    assert memory["audio"] is None and np.abs(memory["video"].values).max() > 0 and carry == 2
    frames = jax.jit(SYSTEM.decode)(PARAMS, end)
    assert frames["video"].shape == (1, 9, 16, 16, 3)
    assert frames["audio"].shape == (1, 6 * HOP, 1, 1, CHANNELS)
    coded = jax.eval_shape(SYSTEM.encode, PARAMS, frames)
    assert {name: x.shape for name, x in coded.items()} == dict(SHAPE)
    # What a call returns is that: pictures as bytes, waves as numbers.
    steps = []
    made: Any = PIPE(
        PROMPT, seed=0, output_type="np", progress=False, callback=lambda step, x: steps.append(x)
    )
    assert len(steps) == 5 and all(np.array_equal(steps[-1][name], end[name]) for name in end)
    np.testing.assert_allclose(made["audio"], frames["audio"][0], atol=1e-5)
    bytes_of = np.round(np.clip(frames["video"][0], 0, 1) * 255)
    assert np.abs(made["video"] - bytes_of).max() <= 1 and made["video"].dtype == np.uint8
    _, other, _ = latents_of(text=OTHER)
    assert all(np.abs(end[name] - other[name]).max() > 1e-4 for name in end)
    # Given sound stays, bit by bit, and another sound makes another video.
    made = []
    for loud in (0.0, 1.0):
        sound = Given(jnp.full(SHAPE["audio"], loud), tuple(range(6)))
        _, both, _ = latents_of(given={"audio": (sound,)})
        np.testing.assert_array_equal(both["audio"], np.full(SHAPE["audio"], loud, np.float32))
        made.append(both["video"])
    assert np.abs(made[0] - made[1]).max() > 1e-3
    again = latents_of()
    assert all(np.array_equal(again[1][name], end[name]) for name in end)
    assert not np.array_equal(start["audio"], latents_of(seed=1)[0]["audio"])


def test_other_numbers_and_prompts_are_no_other_programs():
    latents_of()
    known: tuple[Any, ...] = programs.denoise_row, programs.begin, programs.tell
    sizes = [program._cache_size() for program in known]
    rules = {"video": Projected(5.0, momentum=-0.5), "audio": ClassifierFree(1.5)}
    sampling = dataclasses.replace(SYSTEM.sampling, guidance=rules)
    changed = dataclasses.replace(SYSTEM, sampling=sampling)
    latents_of(
        changed, OTHER, seed=3, matrix=waves_in_seconds(LEVELS, SECONDS, lag=1, block_s=1 / 3)
    )
    assert [program._cache_size() for program in known] == sizes


def loudness(x0, target):
    return 0.5 * jnp.sum((x0 - target) ** 2)


def test_guidance_and_hooks_of_one_modality_leave_the_others_rules_alone():
    """In one row: what one modality becomes is no other's cause yet."""

    def with_rules(**changes):
        return dataclasses.replace(SYSTEM, sampling=dataclasses.replace(SYSTEM.sampling, **changes))

    one_row = waves_in_seconds({n: linspace_levels(1) for n in LEVELS}, SECONDS)
    plain = {"video": ClassifierFree(1.0), "audio": ClassifierFree(1.0)}
    louder = {"video": ClassifierFree(1.0), "audio": ClassifierFree(4.0)}
    hooks = {"video": (), "audio": (GradGuide(loudness, 0.0, 1.0),)}
    expected, other, silent = (
        latents_of(with_rules(**rules), matrix=one_row)[1]
        for rules in (
            {"guidance": plain},
            {"guidance": louder},
            {"guidance": plain, "hooks": hooks},
        )
    )
    for changed in (other, silent):
        np.testing.assert_allclose(changed["video"], expected["video"], atol=1e-5)
    assert np.abs(other["audio"] - expected["audio"]).max() > 1e-4
    np.testing.assert_allclose(silent["audio"], 0, atol=1e-5)
    assert np.abs(expected["audio"]).max() > 0.1


def test_a_wave_is_one_of_seconds_and_a_record_says_what_each_had():
    job = PIPE.prepare(Request(prompt=PROMPT, seed=0))
    expected = waves_in_seconds(LEVELS, SECONDS, lag=1, block_s=1 / 3)
    for name, matrix in expected.items():
        np.testing.assert_array_equal(times(job.matrix[name]), times(matrix))
    assert {name: tuple(size) for name, size in job.shape.items()} == dict(SHAPE)
    twice = PIPE.prepare(Request(prompt=[PROMPT, OTHER], duration="0.7s", guidance_scale=1.5))
    assert {name: size[:2] for name, size in twice.shape.items()} == {
        "video": (2, 3),
        "audio": (2, 6),
    }
    rules = twice.system.sampling.guidance
    assert [rules[name].scale for name in SHAPE] == [1.5, 1.5]
    record = PIPE.record(job).as_data()
    assert record["system"]["matrix"]["rows"] == job.matrix["video"].num_rows == 5
    assert record["settings"]["num_inference_steps"] == {"video": 3, "audio": 3}


def test_starting_noise_and_matrices_are_those_that_are_given():
    noise = {name: np.full(size, 0.1 * len(name)) for name, size in SHAPE.items()}
    noise["audio"] *= 2
    matrix = waves_in_seconds(LEVELS, SECONDS, lag=0)
    start, _, _ = latents_of(latents=noise, matrix=matrix)
    for name, values in noise.items():
        np.testing.assert_allclose(start[name], values, rtol=1e-6)


def test_a_callback_may_change_all_of_them_and_no_fewer():
    job = PIPE.prepare(Request(prompt=PROMPT, seed=0))
    end = PIPE.advance(PIPE.start(job), 1, lambda step, x: {name: 0 * x[name] for name in x})
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(end.state.x))
    with pytest.raises(ConfigError, match="it may return latents of audio and video"):
        PIPE.advance(PIPE.start(job), 1, lambda step, x: {"audio": x["audio"]})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"image": np.zeros((16, 16, 3), np.uint8)}, ConfigError, "image was given"),
        ({"switch": {"row1": OTHER}}, ConfigError, "switch was given"),
        ({"latents": np.zeros(SHAPE["video"])}, ConfigError, "latents is a ndarray"),
        ({"given": {"smell": ()}}, ConfigError, "given is a dict"),
        ({"num_frames": 10}, ShapeError, "10"),
    ],
    ids=["picture", "switch", "one for all", "another name", "frames"],
)
def test_what_no_modality_or_only_one_could_have_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        PIPE.prepare(Request(prompt=PROMPT, seed=0, **settings))


def test_rules_that_cannot_be_are_refused_for_each():
    rules = {"guidance": FrozenDict(video=Unguided(), audio=Forgotten(3.0, 0))}
    first = {"matrix": LagMatrix(1, first_block=1)}
    for changed, message in (
        (rules, "row 0, frame .: .* of Forgotten"),
        (first, "first block of 1"),
    ):
        sampling = dataclasses.replace(PIPE.system.sampling, **changed)
        system = dataclasses.replace(PIPE.system, sampling=sampling)
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(PIPE, system=system).prepare(Request(prompt=PROMPT, seed=0))


def test_dicts_for_a_system_of_one_are_refused():
    one = Pipeline(nano.SYSTEM, {}, nano.MANIFEST)
    with pytest.raises(ConfigError, match="latents is a dict"):
        one.prepare(Request(prompt=PROMPT, seed=0, latents={"video": np.zeros(1)}))


def test_a_run_of_modalities_is_priced_before_anything_is_compiled(monkeypatch):
    """Rows in which any of them moves; twice the videos are twice the products."""
    job, twice = (
        PIPE.prepare(Request(prompt=PROMPT, seed=0, num_videos=videos)) for videos in (1, 2)
    )

    def price_of(job):
        size = pricing.Size(job.batch, 9, 16, 16)
        return pricing.price(job.system, size, job.matrix, sizes_of)

    found = price_of(job)
    assert found.rows == job.matrix["video"].num_rows == 5 and found.operations > 0
    assert price_of(twice).operations == pytest.approx(2 * found.operations, rel=0.01)
    run = PIPE.start(job)
    latents = 3 * sum(x.nbytes for x in jax.tree.leaves(run.state.x))
    assert found.split_bytes >= latents
    assert found.cache_bytes == sum(x.nbytes for x in jax.tree.leaves(run.state.carry))
    six = Request(prompt=PROMPT, seed=0, num_videos=6)
    need = pricing.price(job.system, pricing.Size(6, 9, 16, 16), job.matrix, sizes_of).on_device()
    monkeypatch.setattr(pricing, "free_memory", lambda: None)
    monkeypatch.setattr(pricing, "free_device_memory", lambda _: need)
    PIPE.prepare(six)
    monkeypatch.setattr(pricing, "free_device_memory", lambda _: need - 1)
    with pytest.raises(DeviceMemoryError, match="6 videos of 9 .*that fits: 5 videos of 9 frames"):
        PIPE.prepare(six)


def sizes_of(size):
    return FrozenDict({name: (size.videos, *one[1:]) for name, one in SHAPE.items()})


def test_a_modality_that_does_not_fit_is_decoded_in_pieces_beside_one_that_does(monkeypatch):
    _, latents, _ = latents_of()
    whole = PIPE.decode(latents)
    calls, pieces = [], programs.decode_in_pieces
    monkeypatch.setattr(tiling, "at_once", lambda vae, shape: False)

    def noted(system, *more, **sizes):
        calls.append(system.vae)
        return pieces(system, *more, **sizes)

    monkeypatch.setattr(programs, "decode_in_pieces", noted)
    found = PIPE.decode(latents)
    assert calls == [VAE]
    assert np.abs(found["video"].astype(int) - whole["video"]).max() <= 1
    np.testing.assert_array_equal(found["audio"], whole["audio"])
