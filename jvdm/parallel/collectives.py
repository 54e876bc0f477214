"""What a compiled program sends between devices, read from its HLO."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8}
_USUAL_BYTES = 4  # f32, s32, u32
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(r"(body|condition|calls|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\]<=)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")  # all of an axis, or a part of it


class _Computation(NamedTuple):
    """What one turn of a computation sends, whom it calls how often, and its constants."""

    sends: Counter[str]
    calls: list[tuple[str, str]]
    constants: list[int]


def sent(hlo: str) -> Mapping[str, int]:
    """Returns the bytes that each device sends in one run of a program, by kind of collective.

    A ring is assumed: of `n` devices that gather an array each sends `(n - 1) / n` of it, to
    reduce it twice that. A loop counts as often as the constant in its condition says.

    Args:
        hlo: Text of the compiled program.
    """
    computations, entry = _read(hlo)
    memory: dict[str, Counter[str]] = {}

    def total(name: str) -> Counter[str]:
        if name in memory or name not in computations:
            return memory.get(name, Counter())
        found, computation = Counter(computations[name].sends), computations[name]
        bodies = [called for kind, called in computation.calls if kind == "body"]
        turns = [
            max(computations[called].constants, default=1)
            for kind, called in computation.calls
            if kind == "condition" and called in computations
        ]
        repeats = dict(zip(bodies, turns, strict=False))
        for _, called in computation.calls:
            for kind, size in total(called).items():
                found[kind] += repeats.get(called, 1) * size
        memory[name] = found
        return found

    return {kind: total(entry)[kind] for kind in KINDS if total(entry)[kind]}


def _read(hlo: str) -> tuple[dict[str, _Computation], str]:
    """Returns the computations of a program by name, and the name of the first."""
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation(Counter(), [], [])
    for line in hlo.splitlines():
        if begins := _COMPUTATION.match(line):
            current = computations[begins[2]] = _Computation(Counter(), [], [])
            entry = begins[2] if begins[1] else entry
        if found := _COLLECTIVE.search(line):
            current.sends[found[2]] += _bytes_of(line, found[1], found[2])
        # XLA writes the condition of a loop before its body, in both lists in the same order.
        for kind, names in _CALLED.findall(line):
            called = re.findall(r"[\w.\-]+", names)
            current.calls.extend((kind, name) for name in called)
        if constant := re.search(r"= s32\[\]\S* constant\((\d+)\)", line):
            current.constants.append(int(constant[1]))
    return computations, entry


def _bytes_of(line: str, result: str, kind: str) -> int:
    """Returns what a device sends for one collective."""
    sizes = [
        _ITEM_BYTES.get(dtype, _USUAL_BYTES) * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in _ARRAY.findall(result)
    ]
    # The tuple of an asynchronous one holds what goes in and what comes out.
    size = max(sizes) if "-start(" in line else sum(sizes)
    count = _devices(line)
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (count - 1) if "-start(" not in line else size * (count - 1) // count
    return (2 if kind == "all-reduce" else 1) * size * (count - 1) // count


def _devices(line: str) -> int:
    """Returns how many devices a collective is among, 2 if it does not say so.

    XLA lists them, counts them, or names axes of a mesh.
    """
    if mesh := _MESH.search(line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in _AXIS.findall(mesh[2]))
    group = _GROUP.search(line)
    return 2 if group is None else len(group[1].split(",")) if group[1] else int(group[3])
