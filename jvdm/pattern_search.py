"""Searches for patterns: dense runs that try every one beside what they do.

Sparse-vDiT's writes a table of every head; Efficient-vDiT's says how many reference frames each
layer needs; that of skip-softmax how much every limit skips; that of step caches how much the
layers change from row to row.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from jvdm import record
from jvdm.arrays import Float, instances
from jvdm.attention import Blocks, PatternSearch, SkipSoftmax, TokenGrid, blocks_of
from jvdm.attention.attention_tile import references_of
from jvdm.attention.calibration import fingerprint
from jvdm.attention.patterns import PATTERNS, WINDOWS, PatternTable, candidates, pattern
from jvdm.attention.skip_softmax import LIMITS, Skips, SkipSearch, fitted
from jvdm.attention.sparse_vdit import Trials
from jvdm.errors import ConfigError
from jvdm.files import write_text
from jvdm.models.step_cache import StepCache, TeaCache, relative_change
from jvdm.pipeline import Pipeline, Request
from jvdm.recipes import nearest
from jvdm.stages import stage
from pallas_kernels import block_sparse_attention

Cost = Literal["blocks", "time"]
DEGREE = 4
"""Of TeaCache's polynomial, as published."""
REPEATS = 5
"""Timed calls, of which the median counts."""


def with_policy(pipe: Pipeline, policy: Any) -> Pipeline:
    """Returns the pipeline with another attention policy."""
    sampling = dataclasses.replace(pipe.system.sampling, policy=policy)
    return dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))


def with_cache(pipe: Pipeline, cache: StepCache | None) -> Pipeline:
    """Returns the pipeline with another step cache."""
    sampling = dataclasses.replace(pipe.system.sampling, cache=cache)
    return dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))


def run(
    kind: str,
    pipe: Pipeline,
    request: Request,
    *,
    densities: tuple[float, ...],
    block: int,
    first: int,
    tables: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Searches while videos are made, and writes what was found.

    Args:
        kind: The system whose patterns, reference frames or limits are searched, or "step_cache".
        pipe: The model, and how it is sampled.
        request: What is made meanwhile.
        densities: Shares of attention.
        block: Tokens of a block; 0 chooses.
        first: The first layer that is not dense; a table of patterns has all.
        tables: What a table of patterns is made by, `cost` and `names` (`search`).
        folder: Where the file is written.

    Returns:
        `weights`, their `fingerprint`, `device`, what was found, and `outputs`, the path of the
        file.
    """
    found: dict[str, Any] = {"weights": dict(pipe.identity), "device": record.device()}
    found["fingerprint"] = fingerprint(pipe.identity)
    if kind == "sparse_vdit":
        table = search(pipe, request, densities, block, **tables)
        name, content = "patterns.json", table.text()
        found["patterns"] = [f"{one} {count}" for one, count in table.tried]
        found |= {"costs": list(table.costs), "errors": table.errors.round(4).tolist()}
    else:
        name, search_for = SEARCHES[kind]
        found |= search_for(pipe, request, densities, block, first)
        content = json.dumps(found, indent=1)
    write_text(folder / name, content + "\n")
    return {**found, "outputs": [str(folder / name)]}


def search(
    pipe: Pipeline,
    request: Request,
    densities: tuple[float, ...],
    block: int,
    cost: Cost,
    names: tuple[str, ...] = PATTERNS,
) -> PatternTable:
    """Returns what every pattern does to every head, summed over rows, prompts and branches.

    The first of two runs finds the columns of the stripes.

    Args:
        pipe: The model, and how it is sampled.
        request: What is made meanwhile; the size is that of the table.
        densities: Shares of the blocks that are tried as the sizes of a pattern, below 1.
        block: Tokens of a block; 0 chooses.
        cost: What a pattern costs (`costs_of`).
        names: The patterns that are tried.

    Raises:
        ConfigError: If the densities are no such shares, or there is no such pattern.
    """
    grid = grid_of(pipe, request)
    blocks = blocks_of(grid, block)
    counts = tuple(sorted({round(share * blocks.count) for share in densities}, reverse=True))
    if not counts or not 1 <= counts[-1] <= counts[0] < blocks.count:
        why = f"they are {counts} of {blocks.count} blocks"
        fix = "give shares above 0 and below 1, as --densities 0.5 0.25 0.1"
        raise ConfigError(f"patterns of densities {densities}", why, fix)
    for name in names:
        if name not in (*PATTERNS, *WINDOWS):
            fix = nearest(name, (*PATTERNS, *WINDOWS))
            raise ConfigError(f"a pattern called {name!r}", "there is none", fix)
    policy = PatternSearch(names=names, block=blocks.size, counts=counts)
    trials = cast("Any", None)
    with stage("search", total=2, unit="run") as bar:
        for _ in range(2):
            trials = _trials(pipe, request, policy)
            policy = dataclasses.replace(policy, columns=policy.best_columns(trials))
            bar.update()
    return PatternTable(
        weights=fingerprint(pipe.identity),
        grid=(grid.frames, grid.height, grid.width),
        block=blocks.size,
        counts=counts,
        costs=costs_of(blocks, candidates(counts, names), cost),
        errors=_relative(trials),
        columns=np.asarray(policy.columns),
        names=names,
    )


def search_references(
    pipe: Pipeline, request: Request, densities: tuple[float, ...], block: int, first: int
) -> dict[str, Any]:
    """Returns what attention tiles do to every layer, and how many references each one needs.

    Args:
        pipe: The model, and how it is sampled.
        request: What is made meanwhile.
        densities: Mean shares of attention that the layers may take.
        block: Tokens of a block; 0 chooses.
        first: The first layer that is not dense.

    Returns:
        `errors` `[layers][F]`, the mean square change of the outputs of a layer over their own,
        of 1, 2, .. F references; and `references` by density.

    Raises:
        ConfigError: If a density is too low for one reference frame.
    """
    counts = tuple(range(1, grid_of(pipe, request).frames + 1))
    policy = PatternSearch(block=block, counts=counts, names=("references",))
    with stage("search", total=1, unit="run") as bar:
        errors = _relative(_trials(pipe, request, policy)).mean(1)[:, 1:]
        bar.update()
    found = {f"{density:g}": references_of(errors, density, first) for density in densities}
    return {"errors": errors.round(5).tolist(), "references": found}


def search_limits(
    pipe: Pipeline, request: Request, densities: tuple[float, ...], block: int, first: int
) -> dict[str, Any]:
    """Returns how much every limit of skip-softmax skips, and the two numbers of its scale.

    Args:
        pipe: The model, and how it is sampled.
        request: What is made meanwhile.
        densities: For each, the limit is told whose mean share over the layers is that.
        block: Tokens of a block; 0 chooses.
        first: The first layer that is not dense.

    Returns:
        `limits` in powers of two, `skipped` `[layers][limits]` the share of blocks that each leaves
        out, `tokens` of a call and of a `block`, `fit`, and `found`, the limit of every density.

    Raises:
        ConfigError: If too few limits skip a share that a curve can be fitted to, or a density is
            below .5.
    """
    grid, policy = grid_of(pipe, request), SkipSearch(block=block)
    for density in densities:
        SkipSoftmax(density=density)  # refuses what is too low
    with stage("search", total=1, unit="run") as bar:
        found = _added(pipe, request, policy, Skips)
        skipped = np.asarray(found.skipped / found.calls[:, None, None]).mean(1)
        bar.update()
    mean = skipped[first:].mean(0)
    limits = {f"{x:g}": round(float(np.interp(2 - 2 * x, mean, LIMITS)), 2) for x in densities}
    return {
        "limits": list(LIMITS),
        "skipped": skipped.round(4).tolist(),
        "tokens": grid.tokens,
        "block": blocks_of(grid, block).size,
        "fit": fitted(mean, grid.tokens),
        "found": limits,
    }


def search_changes(pipe: Pipeline, request: Request, *_given: Any) -> dict[str, Any]:
    """Returns what step caches know a network by, over rows, prompts and branches.

    Args:
        pipe: The model, and how it is sampled: all frames of a row at one level.
        request: What is made meanwhile; the more steps, the smaller the changes that are seen.

    Returns:
        `levels` ascending and `sizes`, the logarithm of the mean absolute change by the layers at
        each: MagCache's. `moved` `[rows][2]`, relative changes from row to row of the tokens as
        the first layer modulates them and of what the layers add; `coefficients` of TeaCache's
        polynomial from one to the other, fitted to every frame, and `fitted`, the greatest.

    Raises:
        ConfigError: If there are too few rows for a polynomial.
    """
    running = with_cache(pipe, TeaCache(threshold=0.0, above=2.0))
    run = running.start(running.prepare(request))
    rows = run.job.matrix.num_rows
    if rows < DEGREE + 2:
        what, fix = f"{rows} rows", f"use --num-inference-steps {DEGREE + 2} or more, as 32"
        raise ConfigError(what, f"a polynomial of degree {DEGREE} is fitted to changes", fix)
    before: Any = None
    levels, sizes, moved = [], [], []
    with stage("search", total=rows, unit="row") as bar:
        for _ in range(rows):
            run = running.advance(run, 1)
            kept: Any = run.state.carry.reused
            now = jnp.array(kept.signal), jnp.array(kept.change[0])  # the next row donates them
            levels.insert(0, round(float(kept.at[0].mean()), 4))
            sizes.insert(0, round(float(jnp.log(jnp.abs(now[1].astype(jnp.float32)).mean())), 4))
            if before is not None:
                moved.append([relative_change(*pair) for pair in zip(now, before, strict=True)])
            before = now
            bar.update()
    changes = np.asarray(moved, np.float64)
    x, y = np.moveaxis(changes, 1, 0).reshape(2, -1)
    return {
        "levels": levels,
        "sizes": sizes,
        "moved": changes.mean((2, 3)).round(4).tolist(),
        "coefficients": [float(f"{c:.4g}") for c in np.polyfit(x, y, DEGREE)],
        "fitted": float(f"{x.max():.4g}"),
    }


def _trials(pipe: Pipeline, request: Request, policy: PatternSearch) -> Trials:
    """Returns what a search of patterns adds up in a run."""
    return _added(pipe, request, policy, Trials)


def _added(pipe: Pipeline, request: Request, policy: Any, kind: Any) -> Any:
    """Returns what a search adds up in a run, over all phases."""
    searching = with_policy(pipe, policy)
    run = searching.start(searching.prepare(request))
    searching.compile(run)
    found = instances(searching.advance(run).state.carry, kind)
    parts = [np.sum([np.asarray(x) for x in one], 0) for one in zip(*found, strict=True)]
    return kind(*map(jnp.asarray, parts))


def _relative(trials: Trials) -> Float[np.ndarray, "layers N candidates"]:
    """Returns the errors over the power of the outputs of their layer."""
    power = np.maximum(np.asarray(trials.power, np.float64), 1e-30)
    return np.asarray(trials.errors, np.float64) / power[:, None, None]


def grid_of(pipe: Pipeline, request: Request) -> TokenGrid:
    """Returns the layout of the tokens of a call of the network."""
    job = pipe.prepare(request)
    model: Any = pipe.system.model
    settings, strides = job.settings, job.system.vae.strides
    height, width = (
        side // (stride * model.patch)
        for side, stride in zip((settings.height, settings.width), strides[1:], strict=True)
    )
    heads = model.width // model.head_dim
    window = job.matrix.window
    return TokenGrid(window, height, width, 1, heads, model.head_dim, model.dtype)


def costs_of(blocks: Blocks, tried: tuple[tuple[str, int], ...], cost: Cost) -> tuple[float, ...]:
    """Returns what each pattern costs, a dense head being 1.

    Args:
        blocks: The blocks.
        tried: Patterns, and blocks of a row of each.
        cost: "blocks" that are computed, or "time" that the kernel of this device takes for them
            at this size, the median of five calls over that of lists of everything.
    """
    if cost == "blocks":
        return tuple(round(float(pattern(blocks, *one).mean()), 4) for one in tried)
    masks = [blocks.mask(pattern(blocks, *one)[None, None], max(one[1], 1)) for one in tried]
    grid = blocks.grid
    shape = (3, 1, blocks.count * blocks.size, grid.heads, grid.head_dim)
    q, k, v = jax.random.normal(jax.random.key(0), shape, grid.dtype)
    attend = jax.jit(block_sparse_attention)

    def seconds(mask: Any) -> float:
        took = []
        for _ in range(1 + REPEATS):  # the first compiles
            start = time.perf_counter()
            jax.block_until_ready(attend(q, k, v, mask))
            took.append(time.perf_counter() - start)
        return float(np.median(took[1:]))

    dense = seconds(blocks.everything())
    return tuple(round(seconds(mask) / dense, 4) for mask in masks)


SEARCHES = {
    "efficient_vdit": ("references.json", search_references),
    "skip_softmax": ("limits.json", search_limits),
    "step_cache": ("step_cache.json", search_changes),
}


def said(result: Mapping[str, Any]) -> str:
    """Returns what a search found: of patterns cost and error, the mean over heads of a layer."""
    if "limits" in result:
        lines = ["limit  share of blocks skipped, by layer"]
        for i, limit in enumerate(result["limits"]):
            lines.append(f"{limit:5.1f}  " + " ".join(f"{one[i]:.3f}" for one in result["skipped"]))
        lines += [f"density {one}: a limit of {x}" for one, x in result["found"].items()]
        a, b = result["fit"]
        told = {"fit": f"{a},{b}", "block": result["block"], "weights": result["fingerprint"]}
        lines.append(f"{result['tokens']} tokens:")
        lines += [f"    --sampling.policy.{name} {value}" for name, value in told.items()]
        return "\n".join([*lines, "", *result["outputs"]])
    if "sizes" in result:
        lines = ["level   log size   tokens moved   layers moved"]
        rows = list(zip(result["levels"], result["sizes"], strict=True))[::-1]
        for row, moved in zip(rows, [[np.nan] * 2, *result["moved"]], strict=True):
            lines.append("{:.4f}  {:8.4f}  {:13.4f}  {:13.4f}".format(*row, *moved))
        for kind, names in (("mag", ("levels", "sizes")), ("tea", ("coefficients", "fitted"))):
            given = {name: result[name] for name in names} | {"weights": result["fingerprint"]}
            lines.append(f"--sampling.cache {kind}")
            for name, value in given.items():
                shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
                lines.append(f"    --sampling.cache.{name} {shown}")
        return "\n".join([*lines, "", *result["outputs"]])
    if "references" in result:
        lines = ["references  error by layer, 1 is that of no output"]
        for i, errors in enumerate(np.asarray(result["errors"]).T):
            lines.append(f"{i + 1:10}  " + " ".join(f"{x:.3f}" for x in errors))
        for density, counts in result["references"].items():
            mine = ",".join(map(str, counts))
            lines.append(f"density {density}: --sampling.policy.references {mine}")
        return "\n".join([*lines, "", *result["outputs"]])
    layers = np.asarray(result["errors"]).mean(1)
    lines = ["pattern         cost  error by layer, 1 is that of no output"]
    for i, (name, cost) in enumerate(zip(result["patterns"], result["costs"], strict=True)):
        lines.append(f"{name:14} {cost:5.3f}  " + " ".join(f"{x:.2f}" for x in layers[:, i]))
    return "\n".join([*lines, "", *result["outputs"]])
