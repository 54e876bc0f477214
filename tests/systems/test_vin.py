"""Video Interface Networks: films of any length in chunks, with a fixed number of tokens."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import jvdm
from jvdm.models.interface import InterfaceDiT
from jvdm.pipeline import Pipeline
from jvdm.products import product_flops
from jvdm.recipes import load_system
from jvdm.samplers import Call, SynchronousMatrix
from jvdm.system import System
from tests.generate import nano

PROMPT = "a large red ball rests"
MODEL = InterfaceDiT(
    **{"width": 32, "depth": 1, "latent_channels": 4, "head_dim": 16, "rotary_axes": (4, 6, 6)},
    **{"tokens": 4, "blocks": 1, "dtype": "float32"},
)
BASE = dataclasses.replace(nano.SYSTEM, model=MODEL)


@pytest.fixture(scope="module")
def film() -> Any:
    """The random model as the system."""
    params: Any = nano.drawn(BASE.init, jax.random.key(0))
    return Pipeline(load_system("vin", BASE), params, nano.MANIFEST)


def latents(film, **settings):
    rules = {"seed": 0, "progress": False, "output_type": "latent"}
    return film(PROMPT, **rules | settings)


@pytest.mark.filterwarnings("ignore:.*more than the 9")
def test_films_of_all_lengths_are_made_and_the_last_chunk_knows_the_first(film):
    assert film.system.sampling.matrix == SynchronousMatrix()
    for frames in (1, 9, 29):
        assert np.isfinite(latents(film, num_frames=frames)).all()
    given = [np.full((16, 32, 3), value, np.uint8) for value in (0, 255)]
    made = [np.asarray(latents(film, num_frames=29, image=image)) for image in given]
    assert np.abs(made[0] - made[1])[:, -1].max() > 1e-4
    model = MODEL.clone(tokens=0, overlap=0)
    alone = dataclasses.replace(film, system=dataclasses.replace(film.system, model=model))
    made = [np.asarray(latents(alone, num_frames=29, image=image)) for image in given]
    np.testing.assert_array_equal(made[0][:, -1], made[1][:, -1])


def operations(system: System, latent_frames: int) -> float:
    """Returns the operations of a call."""
    params = jax.eval_shape(system.init_denoiser, jax.random.key(0))
    shape = (1, latent_frames, 8, 8, 4)
    ids = jax.tree.map(jax.numpy.asarray, system.text.read((PROMPT,))[0])

    def call(params, x, t):
        return system.predict(params, system.told(params, ids))(x, Call.at(t), None)[0]

    given = (jax.ShapeDtypeStruct(size, np.float32) for size in (shape, shape[:2]))
    return product_flops(call, params, *given)


def test_work_grows_with_the_length_and_not_with_its_square():
    short, long, longest = (operations(BASE, count) for count in (9, 17, 33))
    np.testing.assert_allclose(longest - long, 2 * (long - short), rtol=1e-6)
    full = [operations(nano.SYSTEM, count) for count in (9, 17, 33)]
    assert full[2] - full[1] > 2.2 * (full[1] - full[0])


def test_sections_with_prompts_of_their_own_are_refused(film):
    with pytest.raises(jvdm.ConfigError, match="all frames of a InterfaceDiT are told one prompt"):
        latents(film, prompt_at={"0.4s": "a small blue box rests"})
