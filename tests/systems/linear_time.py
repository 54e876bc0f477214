"""How the time of a layer grows with tokens: LinGen's scan and windows, and full attention.

python -m tests.systems.linear_time WIDTH [TOKENS ...]

Times what mixes the tokens of one layer, forward, for one video of 32 x 32 tokens a frame, heads of
64 features, in bfloat16 on a GPU and float32 elsewhere; the best of three. Full attention is left
out past `LONGEST` tokens elsewhere. Prints milliseconds, the ratio, and the exponent by which
each grows from one row to the next.
"""

import math
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.attention import AttentionCall, Dense, Policy, TemporalSwin, TokenGrid
from jvdm.models.attention import RotaryAxes, SelfAttention
from jvdm.models.state_space import Mamba2, TokenScan
from jvdm.samplers import Call

HEAD, SIDE, LONGEST = 64, 32, 8_192


def seconds(width: int, frames: int, linear: bool) -> float:
    """Returns the least time of three calls."""
    on_gpu = jax.default_backend() == "gpu"
    dtype = "bfloat16" if on_gpu else "float32"
    grid = TokenGrid(frames, SIDE, SIDE, 1, width // HEAD, HEAD, dtype)
    policy: Policy = TemporalSwin() if linear else Dense()
    positions = RotaryAxes((16, 24, 24), 100.0)
    rotary = positions.table(jnp.arange(float(frames)), grid)
    attention = SelfAttention(HEAD, policy, dtype)
    scan = TokenScan(Mamba2(state=128), HEAD, grid, dtype)
    one = Call.at(jnp.ones((1, frames)))
    x = jax.random.normal(jax.random.key(0), (1, grid.tokens, width), dtype)

    def told(layer: Any) -> AttentionCall:
        turn = positions.turning(rotary, grid, dtype)
        return AttentionCall(layer, one.row, one.t, grid, None, turn)

    @jax.jit
    def init(x: Any, layer: Any) -> Any:
        key = jax.random.key(1)
        made = {"attention": attention.init(key, x, rotary, None, told(layer))}
        return made | ({"scan": scan.init(key, x, layer)} if linear else {})

    @jax.jit
    def run(params: Any, x: Any, layer: Any) -> Any:
        y, _ = attention.apply(params["attention"], x, rotary, None, told(layer))
        return y + scan.apply(params["scan"], x, layer) if linear else y

    layer, times = jnp.int32(1), []
    params = init(x, layer)
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(run(params, x, layer))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def main(width: int, *tokens: int) -> None:
    """Prints a row for each number of tokens."""
    print(f"{jax.devices()[0].device_kind}, width {width}, jax {jax.__version__}")
    print("  tokens   LinGen ms   full ms   ratio   exponents")
    last: dict[str, tuple[int, float]] = {}
    for count in tokens or (2048, 4096, 8192, 16384):
        found = {"linear": seconds(width, count // SIDE**2, linear=True)}
        if jax.default_backend() == "gpu" or count <= LONGEST:
            found["full"] = seconds(width, count // SIDE**2, linear=False)
        grows = {
            name: math.log(now / last[name][1]) / math.log(count / last[name][0])
            for name, now in found.items()
            if name in last
        }
        last |= {name: (count, now) for name, now in found.items()}
        full = found.get("full", math.nan)
        row = f"{count:>8} {1e3 * found['linear']:>11.1f} {1e3 * full:>9.1f}"
        row += f" {full / found['linear']:>7.2f}   "
        print(row + " ".join(f"{name} {value:.2f}" for name, value in grows.items()), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
