"""ARLON: chunks of frames that follow one plan, as clips, streams and sessions; its training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.configs import arlon, nano
from jvdm.models.planned import PlannedDiT
from jvdm.parallel import mesh_of, place
from jvdm.pipeline import Pipeline, Request
from jvdm.pipeline.session import Prompt, begin_session, load_session
from jvdm.recipes import load_system
from jvdm.samplers import AutoregressiveMatrix, ClassifierFree, linspace_levels
from jvdm.system import System
from jvdm.training.objective import TrainCall
from jvdm.training.planned import PlannedMatching
from tests.generate import nano as small
from tests.generate.test_session import steps

PROMPT, OTHER = "a large red ball rests", "a small blue box rests"
MODEL = PlannedDiT(
    **{"width": 32, "depth": 1, "latent_channels": 4, "head_dim": 16, "rotary_axes": (4, 6, 6)},
    **{"codes": 16, "memory": 3, "guide_depth": 1, "dtype": "float32"},
)
BASE = dataclasses.replace(small.SYSTEM, model=MODEL)


def random(system: System) -> Any:
    """Random parameters, so that the plan is read."""
    params: Any = small.drawn(system.init, jax.random.key(0))
    model = params["model"]
    kernel = 0.3 * jax.random.normal(jax.random.key(1), model["plan_out"]["kernel"].shape)
    guide = dict(model["guide"])  # that hears the prompt, and is sure of what it foretells
    guide["out"] = jax.tree.map(lambda leaf: 30 * leaf, guide["out"])
    louder = jax.tree.map(lambda leaf: 100 * leaf, guide["layers_0"]["read_out"])
    guide["layers_0"] = {**guide["layers_0"], "read_out": louder}
    return {**params, "model": {**model, "plan_out": {"kernel": kernel}, "guide": guide}}


@pytest.fixture(scope="module")
def film() -> Any:
    """The random model as the system."""
    return Pipeline(load_system("arlon", BASE), random(BASE), small.MANIFEST)


def latents(film, **settings):
    rules = {"seed": 0, "progress": False, "output_type": "latent", "num_frames": 33}
    return np.asarray(film(PROMPT, **rules | settings))


def changed(film, **rules) -> Pipeline:
    """Returns the pipeline with other rules of sampling, or another model."""
    system = film.system
    if model := rules.pop("model", None):
        system = dataclasses.replace(system, model=model)
    sampling = dataclasses.replace(system.sampling, **rules)
    return dataclasses.replace(film, system=dataclasses.replace(system, sampling=sampling))


@pytest.mark.filterwarnings("ignore:.*more than the 9")
def test_films_are_made_in_chunks_along_a_plan(film):
    matrix = film.system.sampling.matrix(linspace_levels(3), 9)
    assert matrix.window == 8 and np.asarray(matrix.start).max() == 1
    made = latents(film)
    without = latents(changed(film, model=MODEL.clone(follows=False)))
    assert np.isfinite(made).all() and np.abs(made - without).max() > 1e-2
    np.testing.assert_allclose(made[:, :8], latents(film, num_frames=29), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*more than the 9")
def test_branches_of_guidance_have_one_plan_that_of_the_prompt(film):
    """Where no layer reads the prompt all branches say the same, and guidance changes nothing."""
    params = jax.tree.map(lambda leaf: leaf, film.params)
    out = params["model"]["layers"]["cross_attention"]["out"]
    out["kernel"] = jnp.zeros_like(out["kernel"])
    deaf = changed(dataclasses.replace(film, params=params), guidance=ClassifierFree(4.0))
    one = changed(deaf, guidance=ClassifierFree(1.0))
    asked = {"seed": 0, "progress": False, "output_type": "latent", "num_frames": 33}
    made = latents(deaf)
    np.testing.assert_allclose(made, latents(one), rtol=1e-3, atol=1e-3)
    assert np.abs(made - np.asarray(deaf(OTHER, **asked))).max() > 1e-2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*more than the 9")
def test_devices_that_share_a_film_have_its_plan(film):
    """Each makes it from the noise that it sees: one draw that differs would show."""
    mesh = mesh_of("branch=2,sequence=2")
    shared = dataclasses.replace(film, mesh=mesh, params=place(film.params, mesh))
    # Sums in another order: float32 over six steps of a network of two chunks.
    np.testing.assert_allclose(latents(shared), latents(film), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*more than the 9")
def test_a_stream_plans_for_ever_in_a_state_of_one_size_and_hears_another_prompt(film):
    session = begin_session(film, Request(prompt=PROMPT, seed=0))
    sizes, plain, told = [], [], []
    for chunk in range(12):
        session, frames = session.step()
        plain.append(frames)
        if chunk in (2, 11):
            leaves = jax.tree.leaves((session.run.state, session.run.decoder))
            sizes.append([x.nbytes for x in leaves])
            made = session.run.state.run.carry.ring.made
    assert sizes[0] == sizes[1] and int(made) == 12 * 4 * 2  # chunks, frames, squares
    session = begin_session(film, Request(prompt=PROMPT, seed=0))
    for chunk in range(5):
        session, frames = session.step(*([Prompt(OTHER)] if chunk == 2 else []))
        told.append(frames)
    np.testing.assert_array_equal(np.concatenate(told[:2]), np.concatenate(plain[:2]))
    assert np.any(told[4] != plain[4])


@pytest.mark.filterwarnings("ignore:.*more than the 9")
def test_a_saved_session_goes_on_with_its_plan(film, tmp_path):
    session, _ = steps(begin_session(film, Request(prompt=PROMPT, seed=0)), 3)
    session.save(tmp_path / "s.safetensors")
    again = load_session(film, tmp_path / "s.safetensors")
    np.testing.assert_array_equal(steps(again, 2)[1], steps(session, 2)[1])


def test_sections_with_prompts_of_their_own_are_refused(film):
    with pytest.raises(jvdm.ConfigError, match="all frames of a PlannedDiT are told one prompt"):
        latents(film, prompt_at={"0.4s": OTHER})


OBJECTIVE = PlannedMatching(BASE)
BATCH = {
    "latents": jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 4)),
    "tokens": jnp.zeros((2, 64), jnp.int32).at[:, :3].set(jnp.arange(5, 8)),
}


def parts(objective: PlannedMatching = OBJECTIVE) -> Any:
    """Returns a function of parameters: the parts of the loss of a batch."""
    return lambda params: objective.loss(
        params, BATCH, TrainCall(jnp.int32(0), jax.random.key(1), {}, {})
    )[1]


def test_each_loss_moves_its_own_part_alone_and_both_read_the_text():
    params = {name: part for name, part in random(BASE).items() if name != "vae"}
    slopes = jax.jit(jax.jacrev(parts()))(params)
    moved = {
        loss: {
            name
            for name in ("coder", "guide", "layers", "plan_in")
            if any(np.any(leaf) for leaf in jax.tree.leaves(slopes[loss]["model"][name]))
        }
        for loss in ("velocity", "coding", "foretelling")
    }
    assert moved == {
        "velocity": {"layers", "plan_in"},
        "coding": {"coder"},
        "foretelling": {"guide"},
    }
    texts = [jax.tree.leaves(slopes[loss]["text"]) for loss in ("velocity", "foretelling")]
    assert all(any(np.any(leaf) for leaf in leaves) for leaves in texts)


def test_plans_are_noised_by_the_clip_and_some_are_left_out():
    sizes = jnp.arange(1.0, 5.0)[None, None, None, None]
    latents = sizes * jax.random.normal(jax.random.key(2), (400, 2, 4, 4, 4))
    objective = dataclasses.replace(OBJECTIVE, uncertain=0.5, drop_plan=0.25)
    told = objective._uncertain(latents, jax.random.key(3))
    share = np.asarray((told.latents - latents).std((1, 2, 3)) / latents.std((0, 1, 2, 3))[None])
    assert 0.45 < share.max() < 0.65 and 0.2 < share.mean() < 0.3
    level = share.mean(-1)
    assert np.corrcoef(share[:, 0], share[:, 3])[0, 1] > 0.8 and level.min() < 0.05
    assert 0.15 < 1 - np.asarray(told.known).mean() < 0.35
    plain = dataclasses.replace(objective, uncertain=0.0)._uncertain(latents, jax.random.key(3))
    np.testing.assert_array_equal(plain.latents, latents)


def test_the_recipe_trains_the_rows_that_the_system_samples():
    objective: Any = arlon.config().objective
    t = np.asarray(objective.rows(jax.random.key(0), 256, 8).t)
    waits = (t[:, :4] > 0) & (t[:, :4] < 1) & (t[:, 4:] == 1)
    assert waits.all(1).any() and ((t[:, :4] == 0) & (t[:, 4:] < 1)).all(1).any()
    matrix: Any = load_system("arlon", objective.system).sampling.matrix
    assert matrix.rule == AutoregressiveMatrix(arlon.CHUNK) and matrix.window == 2 * arlon.CHUNK


def test_what_cannot_be_trained_is_refused():
    for fields in ({"uncertain": -0.1}, {"drop_plan": 1.1}, {"foretelling": -1.0}):
        with pytest.raises(jvdm.ConfigError, match="a deviation, a share and a weight"):
            dataclasses.replace(OBJECTIVE, **fields)
    with pytest.raises(jvdm.ConfigError, match="plans were to be trained with VideoDiT"):
        system: Any = nano.config().objective
        PlannedMatching(system.system)
