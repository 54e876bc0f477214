"""Sparse attention beside dense attention: the same seeds, several policies and densities."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from jvdm import pattern_search, record
from jvdm.attention import POLICIES, Sparse, SparseVDiT, summary
from jvdm.attention.patterns import PATTERNS
from jvdm.comparison import price, timed
from jvdm.errors import ConfigError
from jvdm.files import probe_writable, write_text
from jvdm.pattern_search import Cost, said, with_policy
from jvdm.pipeline import Request, load
from jvdm.recipes import nearest
from jvdm.stages import measuring, stage

PROMPTS = (
    "a large red ball rolls to the left",
    "a small blue box slides to the right",
)


@dataclasses.dataclass(frozen=True)
class PoliciesOptions:
    """Measures attention policies on one model: fidelity to dense attention against density."""

    weights: str | None = None
    """Weights folder, or the name of weights that come with jvdm; default tiny_t2v."""
    policies: tuple[str, ...] = ("draft", "window", "random", "oracle")
    """Sparse policies, by name."""
    densities: tuple[float, ...] = (0.5, 0.25, 0.1)
    """Shares of attention that are computed."""
    dense_rows: float = 0.25
    """Share of the rows of a run that are dense, for every policy."""
    dense_layers: int = 1
    """First layers that are dense, for every policy."""
    block: int = 0
    """Tokens of a block; 0 chooses. With blocks of one token a draft is exact: no comparison."""
    prompts: tuple[str, ...] = PROMPTS
    """What is made, at once."""
    seed: int = 0
    """Seed of the first video."""
    height: int | None = 256
    """Pixels; 256 x 256 is four times the tokens of tiny_t2v."""
    width: int | None = 256
    """Pixels."""
    num_frames: int | None = None
    """Frames of a video; default that of the model."""
    num_inference_steps: int | None = None
    """Denoising steps; default that of the model."""
    output: Path = Path("out/policies")
    """Folder for policies.json, or the file of a search: patterns.json, references.json,
    limits.json or step_cache.json."""
    table: Path | None = None
    """Table of patterns of `sparse_vdit`; without one all its heads have the same."""
    search: Literal["none", "sparse_vdit", "efficient_vdit", "skip_softmax", "step_cache"] = "none"
    """Instead of measuring, tries patterns while the prompts are made: of blocks, of the sizes
    `densities`, in every head, of which it writes a table; or attention tiles in every layer, of
    which it says how many reference frames each layer needs for these densities; or limits of
    skip-softmax, to which it fits the two numbers of its scale; or, for the step caches `mag` and
    `tea`, how much the layers change from row to row."""
    patterns: tuple[str, ...] = PATTERNS
    """Patterns that the search of `sparse_vdit` tries in every head; `window tube plane` are boxes
    that slide, of which each head is given one (sliding tile attention)."""
    cost: Cost = "blocks"
    """What a search weighs errors against: blocks that are computed, or the time that attention
    takes on this device."""


def run(options: PoliciesOptions) -> dict[str, Any]:
    """Makes the videos with dense attention, then with every policy at every density.

    Returns:
        `rows`: policy, density asked for, `psnr` (dB) and `ssim` of the decoded frames to those
        of dense attention, `seconds` of denoising without compilation, and what the tallies
        say (`jvdm.attention.summary`).

    Raises:
        ConfigError: If a policy is not sparse, or cannot run on these sizes.
    """
    probe_writable(options.output)
    variants = _variants(options) if options.search == "none" else {}
    pipe = load(options.weights)
    names = ("height", "width", "num_frames", "num_inference_steps")
    asked = {name: getattr(options, name) for name in names}
    seeds = tuple(range(options.seed, options.seed + len(options.prompts)))
    request = Request(**asked, prompt=options.prompts, seed=seeds)
    if options.search != "none":
        shared = {name: getattr(options, name) for name in ("densities", "block")}
        shared |= {"first": options.dense_layers, "folder": options.output}
        tables = {"cost": options.cost, "names": options.patterns}
        return pattern_search.run(options.search, pipe, request, **shared, tables=tables)
    for policy in variants.values():
        with_policy(pipe, policy).prepare(request)
    result: dict[str, Any] = {
        "settings": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "weights": dict(pipe.identity),
        "device": record.device(),
        "rows": [],
    }
    dense, path = None, options.output / "policies.json"
    with measuring(True), stage("policies", total=1 + len(variants), unit="run") as bar:
        for (name, density), policy in {("dense", 1.0): POLICIES["dense"], **variants}.items():
            end, seconds = timed(with_policy(pipe, policy), request)
            frames = jnp.asarray(pipe.decode(end.state.x))
            dense = frames if dense is None else dense
            near = {key: float(value) for key, value in price(frames, dense).items()}
            row = {"policy": name, "asked": density, **near, "seconds": round(seconds, 2)}
            result["rows"].append({**row, **summary(end.state.carry)})
            write_text(path, json.dumps(result, indent=1) + "\n")  # a long run may be stopped
            bar.update()
    return {**result, "outputs": [str(path)]}


def text(result: Mapping[str, Any]) -> str:
    """Returns the table, and where the file is."""
    if "rows" not in result:
        return said(result)
    lines = ["policy   asked  density  recall    PSNR    SSIM  seconds"]
    for row in result["rows"]:
        kept = "     -" if row.get("recall") is None else f"{row['recall']:6.3f}"
        lines.append(
            f"{row['policy']:8} {row['asked']:5.2f}  {row.get('density', 1.0):7.3f}  {kept}  "
            f"{row['psnr']:6.2f}  {row['ssim']:6.4f}  {row['seconds']:7.1f}"
        )
    for row in result["rows"]:
        for name, values in row.get("layers", {}).items():
            if name == "recall" and values is not None:
                shown = " ".join(f"{value:.2f}" for value in values)
                lines.append(f"recall per layer, {row['policy']} {row['asked']:.2f}: {shown}")
    return "\n".join([*lines, "", *result["outputs"]])


def _variants(options: PoliciesOptions) -> dict[tuple[str, float], Any]:
    """Returns every policy at every density."""
    sparse: dict[str, Any] = {
        name: policy for name, policy in POLICIES.items() if isinstance(policy, Sparse)
    }
    shared = {name: getattr(options, name) for name in ("dense_rows", "dense_layers", "block")}
    found = {}
    for density, name in itertools.product(options.densities, options.policies):
        if name not in sparse:
            what = f"a sparse policy called {name!r} was asked for"
            raise ConfigError(what, "there is none", nearest(name, sparse))
        policy = dataclasses.replace(sparse[name], density=density, **shared)
        if isinstance(policy, SparseVDiT) and options.table is not None:
            policy = dataclasses.replace(policy, table=str(options.table))
        found[name, density] = policy
    return found
