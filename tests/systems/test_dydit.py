"""DyDiT++: a run has a program for each width, and makes what masks would have made."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import FrameCausal
from jvdm.errors import ConfigError
from jvdm.models.dynamic_width import DynamicWidth, needed
from jvdm.models.regions import Regions
from jvdm.pipeline import Pipeline, Request, widths
from jvdm.recipes import load_system
from jvdm.samplers import Heun, LagMatrix, ShiftedLevels, Stabilised, WindowedMatrix
from jvdm.samplers.matrices import times
from tests.generate import nano

PROMPT = "a large red ball rests"
RULE = DynamicWidth(groups=4)
BASE = dataclasses.replace(nano.SYSTEM, model=nano.DIT.clone(dynamic=RULE))
ASKED = {"seed": 0, "progress": False, "output_type": "latent"}


@pytest.fixture(scope="module")
def params() -> Any:
    """Random ones, whose routers open about half of everything."""
    made = nano.drawn(BASE.init, jax.random.key(0))
    router: Any = made["model"]["layers"]["width_router"]["to_parts"]
    for number, kernel in enumerate(("kernel_0", "kernel_1")):
        shape = router[kernel].shape
        router[kernel] = 20.0 * jax.random.normal(jax.random.key(number), shape)
    router["bias"] = jnp.full_like(router["bias"], -RULE.bias)
    tokens: Any = made["model"]["layers"]["token_router"]
    for name in ("to_token", "to_frame"):
        drawn = jax.random.normal(jax.random.key(5), tokens[name]["kernel"].shape)
        tokens[name] = {"kernel": 3.0 * drawn, "bias": tokens[name]["bias"] - RULE.token_bias}
    return made


def of(params, **sampling) -> tuple[Pipeline, Any]:
    """Returns a pipeline with these rules, and its rows."""
    base = dataclasses.replace(BASE, sampling=dataclasses.replace(BASE.sampling, **sampling))
    pipe = Pipeline(base, params, nano.MANIFEST)
    return pipe, pipe.prepare(Request(prompt=PROMPT, seed=0)).matrix


def masked(pipe: Pipeline) -> Pipeline:
    """Returns a pipeline whose programs compute all and mask."""
    whole = dataclasses.replace(RULE, width=RULE.parts(2))
    model = pipe.system.model.clone(dynamic=whole)
    return dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, model=model))


@pytest.mark.parametrize(
    "rules", [{"levels": ShiftedLevels(4, 1.0)}, {"matrix": LagMatrix(2)}, {"solver": Heun()}]
)
def test_rows_make_what_masks_make_with_no_more_programs_than_widths(params, rules):
    pipe, matrix = of(params, **rules)
    rows = widths.of_rows(pipe.system.in_rows(matrix.num_rows), params, matrix)
    used = {row.model.dynamic.width for row in rows}
    assert len(used) > 1, "levels do not differ"
    assert len({id(row) for row in rows}) == len(used)
    made, plain = (np.asarray(one(PROMPT, **ASKED)) for one in (pipe, masked(pipe)))
    np.testing.assert_allclose(made, plain, atol=1e-4)


def test_a_row_is_wide_enough_for_the_frames_that_it_feeds_alone(params):
    pipe, matrix = of(params, matrix=WindowedMatrix(LagMatrix(3), 2))
    rows = widths.of_rows(pipe.system.in_rows(matrix.num_rows), params, matrix)
    levels = np.asarray(times(matrix))
    for row, system in enumerate(rows):
        fed = slice(int(matrix.start[row]), int(matrix.start[row]) + 2)
        now, then = levels[row, fed], levels[row + 1, fed]
        between = jnp.asarray([now, (now + then) / 2, then])  # where solvers ask
        need = needed(BASE.model, params["model"], between)
        assert (need <= (system.model.dynamic.width or RULE.parts(2))).all()
    assert any(system.model.dynamic.width for system in rows)


def test_what_is_told_of_clean_frames_is_what_routers_are_asked(params):
    """Where clean frames are told another level, rows need the width of that."""
    told = []

    def asked(model, params, t):
        told.append(np.asarray(t))
        return needed(model, params, t)

    pipe, matrix = of(params, matrix=LagMatrix(3), context=Stabilised(0.25))
    patch = pytest.MonkeyPatch()
    with patch.context() as within:
        within.setattr(widths, "needed", asked)
        widths.of_rows(pipe.system.in_rows(matrix.num_rows), params, matrix)
    assert (told[0] == 0.25).any() and not (told[0] == 0).any()


def test_a_plain_network_and_a_complete_one_have_the_programs_they_had(params):
    plain = (nano.SYSTEM,) * 3
    matrix = of(params)[1]
    assert widths.of_rows(plain, params, matrix) == plain
    complete = BASE.model.clone(dynamic=dataclasses.replace(RULE, complete=True))
    rows = (dataclasses.replace(BASE, model=complete),) * 3
    assert widths.of_rows(rows, params, matrix) == rows


def test_the_system_gathers_tokens_of_a_network_with_routers(params):
    system = load_system("dydit", BASE)
    assert system.model.dynamic.capacity == 0.75 and system.model.dynamic.width is None
    made = np.asarray(Pipeline(system, params, nano.MANIFEST)(PROMPT, **ASKED))
    assert np.isfinite(made).all()


def test_what_cannot_be_is_refused_before_it_runs(params):
    with pytest.raises(ConfigError, match="no routers; .*jvdm train configs/dydit.py"):
        load_system("dydit", nano.SYSTEM)
    with pytest.raises(ConfigError, match="routers beside a step cache that runs some tokens"):
        of(params, cache=Regions())
    complete = BASE.model.clone(dynamic=dataclasses.replace(RULE, complete=True), cache=Regions())
    assert complete.start(3, 4, 4), "a complete network asks no router"


def test_a_causal_run_goes_with_routers(params):
    """Every frame has its own width: frames do not know what follows."""
    pipe, _ = of(params, policy=FrameCausal(), matrix=LagMatrix(3))
    with pytest.warns(UserWarning, match="more than the 9"):
        long = np.asarray(pipe(PROMPT, num_frames=17, **ASKED))
    np.testing.assert_allclose(long[:, :3], pipe(PROMPT, **ASKED), rtol=1e-3, atol=1e-3)
