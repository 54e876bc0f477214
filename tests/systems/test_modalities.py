"""A system of video and audio, from parameters to both outputs, through the pipeline's programs."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from jvdm import prompts
from jvdm.pipeline import programs
from jvdm.samplers import (
    ClassifierFree,
    GradGuide,
    Projected,
    freeze,
    linspace_levels,
    shift_levels,
    waves_in_seconds,
)
from jvdm.system import Sampling, System
from tests.generate.nano import TEXT, VAE, drawn

HOP, CHANNELS = 8, 2
SHAPE: Any = FrozenDict(video=(1, 3, 2, 2, 4), audio=(1, 6, 1, 1, 3))
SECONDS = {"video": np.arange(3.0), "audio": np.arange(6) / 2}
PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"


class Posterior(NamedTuple):
    mean: Any


class Waves(nn.Module):
    """Codes waves `[B, T, 1, 1, channels]`; an autoencoder as `System` asks for one."""

    strides: tuple[int, ...] = (HOP, 1, 1)
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
    policy: Any = None

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
RULES = {"video": Projected(3.0, momentum=-0.5), "audio": ClassifierFree(2.0)}
SYSTEM = System(
    TEXT, Both(), FrozenDict(video=VAE, audio=Waves()), sampling=Sampling(guidance=RULES)
)
PARAMS = drawn(SYSTEM.init, jax.random.key(0))
MATRICES = waves_in_seconds(LEVELS, SECONDS, lag=1)


def told(system, text=PROMPT):
    ids, _ = system.text.read(prompts.of_branches(system.branches, (text,), None))
    return programs.tell(system, PARAMS, ids, None, shape=(1,))


def latents_of(system=SYSTEM, text=PROMPT, matrices=MATRICES, placed=(), seed=0):
    seeds = np.asarray([seed], np.uint32)
    state = programs.begin(system, matrices, seeds, None, placed, SHAPE, None)
    start = {name: np.asarray(x) for name, x in state.x.items()}
    for row in range(matrices["video"].num_rows):
        given = (system, PARAMS, told(system, text), matrices, state, np.int32(row))
        state = programs.denoise_row(*given, mesh=None)
    return start, {name: np.asarray(x) for name, x in state.x.items()}, state.carry


def test_prompts_become_video_and_waves_that_hear_each_other():
    start, end, (memory, carry) = latents_of()
    assert {name: x.shape for name, x in end.items()} == dict(SHAPE)
    assert memory["audio"] is None and np.abs(memory["video"].values).max() > 0 and carry == 2
    frames = jax.jit(SYSTEM.decode)(PARAMS, end)
    assert frames["video"].shape == (1, 9, 16, 16, 3)
    assert frames["audio"].shape == (1, 6 * HOP, 1, 1, CHANNELS)
    coded = jax.eval_shape(SYSTEM.encode, PARAMS, frames)
    assert {name: x.shape for name, x in coded.items()} == dict(SHAPE)
    _, other, _ = latents_of(text=OTHER)
    assert all(np.abs(end[name] - other[name]).max() > 1e-4 for name in end)
    # Given sound stays, bit by bit, and another sound makes another video.
    given = {**MATRICES, "audio": freeze(MATRICES["audio"], range(6))}
    made = []
    for loud in (0.0, 1.0):
        sound = ((jnp.full(SHAPE["audio"], loud), jnp.arange(6)),)
        _, both, _ = latents_of(matrices=given, placed={"video": (), "audio": sound})
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
    latents_of(dataclasses.replace(SYSTEM, sampling=sampling), OTHER, seed=3)
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
        latents_of(with_rules(**rules), matrices=one_row)[1]
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
