"""The table of a training step's time."""

import jax
import jax.numpy as jnp
import pytest

from jvdm.training import tracing
from jvdm.training.tracing import Tracer

PROGRAM = """
  %dot.1 = f32[] dot(), metadata={op_name="jit(run)/jvp(VideoDiT)/layers/while/body/mlp/up/dot_general"}
  ROOT %dot.2 = f32[] dot(), metadata={op_name="jit(run)/transpose(jvp(VideoDiT))/layers/mlp/dot_general"}
  add.3 = f32[] add(), metadata={op_name="jit(run)/data/jit(draw)/add"}
  mul.4 = f32[] multiply(), metadata={op_name="jit(run)/mul"}
"""  # noqa: E501


def test_operations_belong_to_the_modules_that_made_them():
    assert tracing.scopes(PROGRAM) == {
        "dot.1": "VideoDiT/layers/mlp/up",
        "dot.2": "VideoDiT/layers/mlp, backward",
        "add.3": "data/draw",
        "mul.4": "other",
    }


def test_the_table_shows_shares_of_a_step():
    shown = tracing.table({"a": (0.006, 4), "b": (0.002, 2)}, steps=2)
    _, first, second, total = shown.splitlines()
    assert first.split() == ["3.000", "75.0%", "2", "a"]
    assert second.split() == ["1.000", "25.0%", "1", "b"]
    assert total.split() == ["4.000", "all"]


def test_steady_steps_are_traced_once(tmp_path, capsys):
    def step(x):
        with jax.named_scope("heavy"):
            x = jnp.tanh(x @ x) @ x
        return x

    x = jnp.eye(256)
    program, shown = jax.jit(step).lower(x).compile(), []
    with Tracer(tmp_path, 2) as tracer:
        for number in range(1, 15):
            tracer.before_step(number, x, program)
            shown.append(capsys.readouterr().err)
            x = jax.block_until_ready(program(x))
    assert [number for number, text in enumerate(shown, 1) if text] == [12]
    assert (tmp_path / "profile" / "table.txt").read_text() == shown[11]
    rows = [line.split() for line in shown[11].splitlines() if line.endswith("  heavy")]
    assert rows and float(rows[0][0]) > 0


@pytest.mark.parametrize("last", [11, 20])
def test_a_trace_that_is_open_at_the_end_is_closed(tmp_path, last):
    x = jnp.eye(2)
    program = jax.jit(jnp.tanh).lower(x).compile()
    with Tracer(tmp_path, 50) as tracer:
        for number in range(1, last):
            tracer.before_step(number, x, program)
    with jax.profiler.trace(str(tmp_path / "again")):  # refused while another one is open
        pass
