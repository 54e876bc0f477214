"""`jvdm profile`: which kinds of operations a network consists of, and where its time goes.

Operations are read from the traced program by their named scopes; times are measured by JAX's
profiler and predicted by what the data sheet of a machine allows (Williams et al., roofline,
CACM 52, 2009). The question, and the table, are those of "Generative AI Beyond LLMs" (Golden et
al., arXiv:2312.14385), of diffusion models for pictures and videos.
"""

import dataclasses
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jvdm import works
from jvdm.arrays import PyTree
from jvdm.errors import ConfigError
from jvdm.families import FAMILIES
from jvdm.parallel import data_mesh
from jvdm.products import Operation, operations
from jvdm.recipes import nearest
from jvdm.targets import MACHINES, Machine
from jvdm.training.tracing import part_of, times
from jvdm.works import Work

KINDS = (
    "attention self",
    "attention cross",
    "attention temporal",
    "linear",
    "conv",
    "norm",
    "other",
)
"""Kinds of operations."""
_SOFTMAX = ("exp", "reduce_max", "reduce_sum", "div", "sub")
_SCORES = "BTNH,BSNH->BNTS"  # scope of the scores of `jax.nn.dot_product_attention`
_REPEATS = 3  # runs of a program that are traced


@dataclasses.dataclass(frozen=True)
class ProfileOptions:
    """Says which kinds of operations a network consists of, and where its time goes."""

    config: str = "wan-tiny"
    """A published network: wan-1.3b-480p, ltx-2b-512p, ...; or a training config."""
    on: str = "h200"
    """Machine that times are predicted for: v5e, v5p, v6e, h100, h200, ..."""
    measure: bool = True
    """Whether the programs are run here too, with zeros for parameters."""


def run(options: ProfileOptions) -> dict[str, Any]:
    """Carries out `jvdm profile`.

    Returns:
        `on`, `device` and `programs`: of each `rows`, a kind of operations in one run each, with
        `flops`, `bytes` (`unfused_bytes` where scores of attention are written and read),
        `intensity`, `predicted_s` and, where it was measured, `measured_s`;
        `attention`, the sequence lengths, and `times`, how often a video runs it.

    Raises:
        ConfigError: If there is no such network, config or machine.
    """
    if options.on not in MACHINES:
        fix = nearest(options.on, MACHINES)
        raise ConfigError(f"--on is {options.on!r}", f"known are {', '.join(MACHINES)}", fix)
    mesh, name = data_mesh(1), options.config
    planned: Iterable[Work] = (
        works.video_of(name, mesh) if name in FAMILIES else (works.step_of_config(name, mesh),)
    )
    programs = [_profiled(work, MACHINES[options.on], options.measure) for work in planned]
    return {"on": options.on, "device": jax.devices()[0].device_kind, "programs": programs}


def text(result: Mapping[str, Any]) -> str:
    """Says the same as tables."""
    lines = []
    for program in result["programs"]:
        lines += [program["program"] + f", {program['times']} times"]
        lines.append(
            f"  {'':18} {'GFLOP':>10} {'MB':>10} {'FLOP/byte':>10} {'ms':>9} {'measured':>9}"
        )
        for row in program["rows"]:
            cells = (
                f"{row['flops'] / 1e9:10.3f} {row['bytes'] / 1e6:10.1f} {row['intensity']:10.1f}"
            )
            spent = f"{1e3 * row['measured_s']:9.3f}" if "measured_s" in row else f"{'-':>9}"
            lines.append(f"  {row['kind']:18} {cells} {1e3 * row['predicted_s']:9.3f} {spent}")
        for entry in program["attention"]:
            sizes = "{queries} queries, {keys} keys, {batch} heads, {times} times".format(**entry)
            lines.append(f"  {entry['kind']:18} {sizes}")
    lines.append(f"ms: predicted of {result['on']}; measured on {result['device']}")
    return "\n".join(lines)


def kind_of(operation: Operation) -> str:
    """Returns the kind of an operation, by its primitive and its named scopes."""
    path, name = operation.path, operation.name
    if name.startswith("conv_general"):
        return "conv"
    fused = name == "pallas_call" or name.startswith("dot_product_attention")
    rank = max(map(len, operation.shapes), default=0)
    softmax = rank > 4 or (rank > 3 and name in _SOFTMAX)  # scores have all axes of a product
    softmax = softmax and re.search(r"atten|_read|layers$|BNTS", path)
    if fused or softmax or (operation.batched and len(operation.shapes[0]) > 3):
        if re.search(r"cross|_read", path):
            return "attention cross"
        return "attention temporal" if re.search(r"tempor|time_att", path) else "attention self"
    if name == "dot_general":
        return "linear"
    return "norm" if re.search(r"norm", path) else "other"


def _profiled(work: Work, machine: Machine, measure: bool) -> dict[str, Any]:
    """Returns the tables of one program."""
    found = list(operations(work.run, *work.held.values()))
    flops, size, alone = Counter[str](), Counter[str](), Counter[str]()
    for operation in found:
        kind = kind_of(operation)
        flops[kind] += operation.times * operation.flops  # pyright: ignore[reportArgumentType]
        size[kind] += operation.times * _moved(operation, kind)
        alone[kind] += operation.times * operation.bytes
    spent = _measured(work, found) if measure else {}
    rows = []
    for kind in KINDS:
        if not size[kind] and not spent.get(kind):
            continue
        row: dict[str, Any] = {"kind": kind, "flops": float(flops[kind]), "bytes": size[kind]}
        row["intensity"] = flops[kind] / max(size[kind], 1)
        row["unfused_bytes"] = alone[kind]
        row["predicted_s"] = max(flops[kind] / machine.flops, size[kind] / machine.reads)
        rows.append(row | ({"measured_s": spent.get(kind, 0.0)} if measure else {}))
    lengths = {"rows": rows, "attention": lengths_of(found)}
    return {"program": work.name, "times": work.times, **lengths}


def _moved(operation: Operation, kind: str) -> int:
    """Returns the bytes of an operation where attention is one kernel, which keeps its scores."""
    if not kind.startswith("attention") or operation.name == "pallas_call":
        return operation.bytes
    if not operation.batched:
        return 0
    if _SCORES in operation.path:
        return sum(operation.reads)
    return operation.bytes - operation.reads[-1]


def lengths_of(found: Iterable[Operation]) -> list[dict[str, Any]]:
    """Returns the sequence lengths of attention, and how often each is computed.

    Returns:
        `kind`, `queries`, `keys`, `batch` (sequences times heads) and `times`.
    """
    calls: Counter[tuple[str, int, int, int]] = Counter()
    for operation in found:
        if operation.batched and _SCORES in operation.path:
            q, k = operation.shapes[:2]
            calls[kind_of(operation), q[1], k[1], math.prod(q[2:-1]) * q[0]] += operation.times
    names = ("kind", "queries", "keys", "batch")
    return [dict(zip(names, key, strict=True)) | {"times": n} for key, n in calls.items()]


def _measured(work: Work, found: Iterable[Operation]) -> dict[str, float]:
    """Returns the seconds of each kind of operations in one run, from a profiler's trace."""
    kinds = {_place(one.path, one.name): kind_of(one) for one in found}
    compiled = jax.jit(work.run).lower(*work.held.values()).compile()
    given = [_zeros(tree) for tree in work.held.values()]
    jax.block_until_ready(compiled(*given))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_REPEATS):
                jax.block_until_ready(compiled(*given))
        (trace,) = Path(folder).rglob("*.xplane.pb")
        pattern = r'^ *(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"'
        named = re.findall(pattern, compiled.as_text() or "", re.MULTILINE)
        of = {operation: _kind_of_place(name, kinds) for operation, name in named}
        spent = times(trace, of)
    kept: dict[str, float] = {kind: 0.0 for kind in KINDS}
    for kind, (seconds, _) in spent.items():
        kept[kind if kind in kept else "other"] += seconds / _REPEATS
    return kept


def _place(path: str, name: str) -> tuple[str, str]:
    return part_of(f"program/{path}/{name}"), name


def _kind_of_place(name: str, kinds: Mapping[tuple[str, str], str]) -> str:
    """Returns the kind of a compiled operation, which XLA calls like what it was made of."""
    outer, _, last = name.partition(";")[0].rpartition("/")
    path = outer.partition("/")[2]
    known = kinds.get(_place(path, last))  # XLA's names have conditions in them, ours have not
    return known or kind_of(Operation(path, last, 1, 0.0, 0, ((1,) * 4,), (), "BNTS" in path))


def _zeros(tree: PyTree) -> PyTree:
    """Returns zeros for shapes; keys are that of 0."""

    def zeros(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)

    return jax.tree.map(zeros, tree)
