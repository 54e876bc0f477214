"""Published weights to ours and back: one engine that renames, turns and stacks arrays.

A table says for every array of a network what it is called elsewhere and how it lies there.
Every published array is used exactly once, or it is an error. Nothing is computed: numbers keep
their bits and their type, so that there and back is the identity.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvdm.errors import WeightsError
from jvdm.weights.leaves import Leaf
from jvdm.weights.safetensors import (
    Tree,
    check_finite,
    check_floating,
    flatten,
    listed,
    match,
    unflatten,
)

Turn = Callable[[np.ndarray], np.ndarray]
Tensors = Mapping[str, Any]  # arrays, or what reads like one: `shape`, `dtype` and slices
_PREFIX = "model.diffusion_model."  # of single files of the original code
_FIX = "use the config.json that was published with these weights, or download both again"


class Layout(NamedTuple):
    """How a published array becomes ours, and the way back."""

    ours: Turn
    theirs: Turn

    def then(self, other: "Layout") -> "Layout":
        """Returns the layout that does what this one does, and then the other."""
        return Layout(lambda x: other.ours(self.ours(x)), lambda x: self.theirs(other.theirs(x)))


SAME = Layout(lambda x: x, lambda x: x)


def transposed(*axes: int) -> Layout:
    """Returns the layout whose axes are those of the published array in this order."""
    back = np.argsort(axes)
    return Layout(lambda x: x.transpose(axes), lambda x: x.transpose(back))


LINEAR = transposed(1, 0)
CONV_2D, CONV_3D = transposed(2, 3, 1, 0), transposed(2, 3, 4, 1, 0)
FIRST = Layout(lambda x: x[0], lambda x: x[None])
"""Drops a leading axis of one."""
LEAD = Layout(FIRST.theirs, FIRST.ours)
"""Adds one."""


def joined(*sizes: int) -> Layout:
    """Returns the layout that joins all axes but the last, which were of these `sizes`; -1 once."""
    return Layout(lambda x: x.reshape(-1, x.shape[-1]), lambda x: x.reshape(*sizes, x.shape[-1]))


def flat(ones: int) -> Layout:
    """Returns the layout of a vector that is published with so many axes of one after it."""
    return Layout(lambda x: x.reshape(-1), lambda x: x.reshape(-1, *(1,) * ones))


def halves(size: int) -> Layout:
    """Returns the layout that puts even features of every head of `size` before odd ones."""

    def change(x: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
        return x.reshape(*x.shape[:-1], -1, *pair).swapaxes(-1, -2).reshape(x.shape)

    return Layout(lambda x: change(x, (size // 2, 2)), lambda x: change(x, (2, size // 2)))


class Rule(NamedTuple):
    """Where an array comes from.

    Attributes:
        theirs: Its published name; `{}` counts layers, whose arrays are stacked.
        ours: Its path in the parameters, joined by `/`.
        layout: How one published array becomes ours.
    """

    theirs: str
    ours: str
    layout: Layout = SAME


def linear(theirs: str, ours: str, kernel: Layout = LINEAR, bias: Layout = SAME) -> list[Rule]:
    """Returns the rules of a product or convolution with bias."""
    return [
        Rule(f"{theirs}.weight", f"{ours}/kernel", kernel),
        Rule(f"{theirs}.bias", f"{ours}/bias", bias),
    ]


@dataclasses.dataclass(frozen=True)
class Table:
    """What a family calls the arrays of a network.

    Attributes:
        rules: One for every array.
        copies: Names under which an array may be stored again, or instead: the copy first.
        ignored: Regular expressions of published names that the network has no use for.
        originals: What Diffusers calls the modules of the original code, where names differ;
            `{}` counts layers.
    """

    rules: tuple[Rule, ...]
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    originals: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Report(NamedTuple):
    """How many published arrays were needed, were read, and were left out on purpose."""

    expected: int
    loaded: int
    unused: int

    def __str__(self) -> str:
        return f"{self.expected} arrays expected, {self.loaded} loaded, {self.unused} unused"


def converted(
    table: Table, tensors: Tensors, expected: Mapping[str, Any], where: str | Path
) -> tuple[Tree, Report]:
    """Returns the parameters that published arrays are, as arrays; see `leaves_of`.

    Raises:
        WeightsError: Also if a value is not finite.
    """
    tree, report = leaves_of(table, tensors, expected, where)
    return unflatten({name: np.asarray(leaf) for name, leaf in flatten(tree).items()}), report


def leaves_of(
    table: Table, tensors: Tensors, expected: Mapping[str, Any], where: str | Path
) -> tuple[Tree, Report]:
    """Returns the parameters that published arrays are, to be read as they are needed.

    Args:
        table: What they are called.
        tensors: The published arrays, by name; views of a file are not read here.
        expected: The parameters of the network; leaves have a `shape`.
        where: Where they come from, for errors.

    Raises:
        WeightsError: If an array is missing, left over or of another shape, with the published
            names.
    """
    plan = _planned(table, tensors, expected, where)
    match(where, plan.tensors, plan.needed, _FIX)
    check_floating(where, plan.tensors)
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(expected).items()}
    leaves = {}
    for rule, names in plan.names.items():
        parts, stacked = [plan.tensors[name] for name in names], "{}" in rule.theirs
        turn, shape = rule.layout.ours, shapes[rule.ours]
        leaves[rule.ours] = Leaf(shape, names, parts, turn, stacked, where)
    return unflatten(leaves), Report(len(plan.needed), len(plan.tensors), plan.unused)


def faults(
    table: Table,
    tensors: Tensors,
    expected: Mapping[str, Any],
    where: str | Path,
    whole: bool = True,
) -> list[WeightsError]:
    """Returns everything for which `converted` would refuse published arrays.

    Args:
        table: What they are called.
        tensors: The published arrays, by name.
        expected: The parameters of the network; leaves have a `shape`.
        where: Where they come from, for the messages.
        whole: Whether arrays that are missing are a fault.
    """
    try:
        plan = _planned(table, tensors, expected, where)
    except WeightsError as error:
        return [error]
    needed = {name: one for name, one in plan.needed.items() if whole or name in plan.tensors}
    checks: list[Callable[[], None]] = [
        lambda: match(where, plan.tensors, needed, _FIX),
        lambda: check_floating(where, plan.tensors),
    ]
    checks += [
        functools.partial(check_finite, where, name, array) for name, array in plan.tensors.items()
    ]
    found = []
    for check in checks:
        try:
            check()
        except WeightsError as error:
            found.append(error)
    return found


class _Plan(NamedTuple):
    """Published arrays without copies, how many those were, and what the network needs of them."""

    tensors: dict[str, Any]
    unused: int
    names: dict[Rule, list[str]]
    needed: dict[str, np.ndarray]


def _planned(
    table: Table, tensors: Tensors, expected: Mapping[str, Any], where: str | Path
) -> _Plan:
    """Returns what is made of which published arrays, before they are compared."""
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(expected).items()}
    kept, unused = _sorted_out(table, tensors, where)
    plan = {rule: rule_names(rule, shapes[rule.ours]) for rule in _complete(table, shapes)}
    needed = {
        name: _published(rule, shapes[rule.ours]) for rule, names in plan.items() for name in names
    }
    return _Plan(kept, unused, plan, needed)


def published(table: Table, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of `params` as they are published: the inverse of `converted`.

    Raises:
        WeightsError: If the table does not name an array.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    tensors = {}
    for rule in _complete(table, shapes):
        leaf = leaves[rule.ours]
        parts = leaf if "{}" in rule.theirs else leaf[None]
        for name, part in zip(rule_names(rule, shapes[rule.ours]), parts, strict=True):
            tensors[name] = np.asarray(rule.layout.theirs(part), order="C")
    return tensors


def _complete(table: Table, shapes: Mapping[str, Any]) -> Sequence[Rule]:
    """Returns the rules, which must name every array of the network once."""
    named = [rule.ours for rule in table.rules]
    if sorted(named) != sorted(shapes):
        odd = sorted(set(named) ^ set(shapes)) or ["an array is named twice"]
        raise WeightsError(f"the table of names and the network differ: {listed(odd)}")
    return table.rules


def rule_names(rule: Rule, shape: Sequence[int]) -> list[str]:
    """Returns the published names of what is in an array of ours that has this shape."""
    count = shape[0] if "{}" in rule.theirs else 1
    return [rule.theirs.replace("{}", str(index)) for index in range(count)]


def published_name(table: Table, name: str) -> str:
    """Returns what Diffusers calls a module, or an array, of the original code; else `name`."""
    stem = re.sub(r"\.(weight|bias)$", "", name)
    for key, layer in _keys(stem).items():
        if key in table.originals:
            return table.originals[key].replace("{}", layer) + name[len(stem) :]
    return name


def _keys(name: str) -> dict[str, str]:
    """Returns a name, and the same with each number as `{}`, by which that number is found."""
    numbers = re.finditer(r"\d+", name)
    return {name: ""} | {f"{name[: n.start()]}{{}}{name[n.end() :]}": n[0] for n in numbers}


def original_names(table: Table, module: str) -> list[str]:
    """Returns what the original code calls a module of Diffusers: one name, or none."""
    inverse = Table((), originals={ours: theirs for theirs, ours in table.originals.items()})
    name = published_name(inverse, module)
    return [] if name == module else [name]


def _sorted_out(table: Table, tensors: Tensors, where: str | Path) -> tuple[dict[str, Any], int]:
    """Returns the arrays without copies and ignored ones, and how many those were."""
    kept = {
        name: array
        for name, array in _renamed(table, tensors, where).items()
        if not any(re.fullmatch(pattern, name) for pattern in table.ignored)
    }
    for copy, name in table.copies.items():
        if copy in kept:
            array = kept.pop(copy)
            if not np.array_equal(kept.setdefault(name, array), array):
                why = "they are one array of the network"
                raise WeightsError(f"{where}: {copy} and {name} differ", why, "download it again")
    return kept, len(tensors) - len(kept)


def _renamed(table: Table, tensors: Tensors, where: str | Path) -> Mapping[str, Any]:
    """Returns arrays by Diffusers' names, where those of the original code are theirs."""
    theirs = {rule.theirs for rule in table.rules}
    if not any(
        name.startswith(_PREFIX)
        or published_name(table, name) != name
        and not theirs & _keys(name).keys()
        for name in tensors  # a name may be Diffusers' for one array, the original for another
    ):
        return tensors
    names = {name: published_name(table, name.removeprefix(_PREFIX)) for name in tensors}
    if len(set(names.values())) < len(names):
        what = f"{where} holds arrays in the names of Diffusers and of the original code"
        raise WeightsError(what, "some are there twice", "keep one of its files")
    return {names[name]: array for name, array in tensors.items()}


def _published(rule: Rule, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array, without memory, of the shape that one of ours is published in."""
    one = shape[1:] if "{}" in rule.theirs else shape
    return rule.layout.theirs(np.broadcast_to(np.zeros((), np.int8), one))
