"""`samplers/sampler.py` holds the only loop over noise levels."""

import pytest

from tests.architecture.loops import HOME, loops_over_levels
from tests.architecture.source import planted, project

SECOND_LOOPS = {
    "for with a solver": """
for row in range(rows):
    x, state = solver.step(denoise, x, levels[row], levels[row + 1], state)
""",
    "scan with a local body": """
def run(denoise, x, levels):
    def body(x, t):
        denoised, _ = denoise(x, t, None)
        return denoised.x0, None
    return jax.lax.scan(body, x, levels)
""",
    "while with a helper and a method": """
class Sampler:
    def run(self, x):
        while self.t > 0:
            x = self.once(x)
        return x
    def once(self, x):
        return move(self, x)
def move(sampler, x):
    return sampler.solver.step(sampler.denoise, x)
""",
    "partial in a fori loop": """
def body(solver, k, x):
    return solver.step(k, x)
jax.lax.fori_loop(0, 9, functools.partial(body, euler), x)
""",
    "comprehension over rows": """
from jvdm.samplers.sampler import advance
states = [advance(denoise, solver, process, matrix, state, row, 1) for row in range(9)]
""",
    "through another module": """
from jvdm.samplers.solvers import Euler
from jvdm.planted_helper import once
for row in rows:
    x = once(x, row)
""",
    "by hand": """
for t, t_next in zip(levels[:-1], levels[1:]):
    x = x + (t_next - t) * model.apply(params, x, t)
""",
}

NO_LOOPS_OVER_LEVELS = {
    "prompts": """
from jvdm.samplers.sampler import sample
for prompt in prompts:
    videos.append(sample(denoise_with(prompt), solver, process, matrix, x, key))
""",
    "training": """
for step in range(num_steps):
    state, data, metrics = train_step(state, data)
""",
    "branches": "weights = [weight * scale for weight in branches]",
    "one step": "x, state = solver.step(denoise, x, t, t_next, state)",
}

HELPER = planted(
    "def once(x, row):\n    return solver.step(x, row)", "jvdm.planted_helper", "jvdm/helper.py"
)


def test_there_is_one_loop_over_noise_levels():
    modules = project("jvdm") + project("configs")
    found = {module.path: loops_over_levels(module, modules) for module in modules}
    found = {path: lines for path, lines in found.items() if lines}
    assert list(found) == [f"{HOME.replace('.', '/')}.py"], "use sampler.sample or sampler.advance"


@pytest.mark.parametrize("text", SECOND_LOOPS.values(), ids=SECOND_LOOPS)
def test_a_second_loop_is_found(text):
    assert loops_over_levels(planted(text), (*project("jvdm"), HELPER))


@pytest.mark.parametrize("text", NO_LOOPS_OVER_LEVELS.values(), ids=NO_LOOPS_OVER_LEVELS)
def test_other_loops_are_left_alone(text):
    assert not loops_over_levels(planted(text), project("jvdm"))
