"""Low-rank changes of published networks (LoRA): read in all common names, fused or not, written.

Hu et al., arXiv:2106.09685: a matrix `W [out, in]` becomes `W + scale * up @ down` with `down
[rank, in]` and `up [out, rank]`, where `scale` is `alpha / rank`, or `alpha / sqrt(rank)` where a
file says that it is rank-stabilised (Kalajdzievski, arXiv:2312.03732). Without alpha it is 1.

Names are those of Diffusers and PEFT (`transformer.blocks.0.attn1.to_q.lora_A.weight`), of the
original code (`diffusion_model.blocks.0.self_attn.q.lora_down.weight`, `.diff`, `.diff_b`), or of
Kohya's scripts (`lora_unet_blocks_0_self_attn_q.lora_down.weight`, `.alpha`).
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvdm.errors import ConfigError, WeightsError
from jvdm.reading import parse_json, read_json
from jvdm.recipes import nearest
from jvdm.weights.convert import Rule, Table, original_names, published_name, rule_names
from jvdm.weights.safetensors import (
    Tree,
    check_finite,
    flatten,
    listed,
    load_stored,
    read_header,
    save_stored,
    unflatten,
)

METADATA = "lora_adapter_metadata"  # of Diffusers, in the header of a file
_ENDINGS = {
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_down.weight": "down",
    "lora.down.weight": "down",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora_up.weight": "up",
    "lora.up.weight": "up",
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
}
_PREFIXES = (
    *("base_model.model.", "transformer.", "transformer_2."),
    *("model.diffusion_model.", "diffusion_model."),
)
_KOHYA = "lora_unet_"
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|[-+]?inf"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A file of low-rank changes, and how strongly they are applied.

    Attributes:
        path: Safetensors file, or folder of PEFT.
        strength: 1 applies it as it was trained, 0 not at all.
        network: Which network it changes, where a model has several; "" if that was not said.
    """

    path: Path
    strength: float = 1.0
    network: str = ""

    @classmethod
    def parsed(cls, text: str | Path) -> "Adapter":
        """Returns the adapter that `PATH`, `PATH:STRENGTH` or `NETWORK=PATH` names.

        Raises:
            ConfigError: If the strength is not finite.
        """
        path, colon, number = str(text).rpartition(":")
        if not colon or not re.fullmatch(_NUMBER, number):
            path, number = str(text), "1"
        if not math.isfinite(strength := float(number)):
            raise ConfigError(f"the strength of {path} is {number}", "it is a factor", "use 0 to 2")
        network = re.match(r"([a-z]+)=", path)
        if network is None or Path(path).exists():
            return cls(Path(path).expanduser(), strength)
        return cls(Path(path[network.end() :]).expanduser(), strength, network[1])

    @property
    def label(self) -> str:
        """What a record calls it."""
        return f"{self.network}={self.path}" if self.network else str(self.path)

    @property
    def file(self) -> Path:
        """The file with its arrays."""
        return self.path / "adapter_model.safetensors" if self.path.is_dir() else self.path


class Change(NamedTuple):
    """The change of one published array, in the type of the file: low-rank, or as a whole."""

    down: np.ndarray | None
    up: np.ndarray
    scale: float

    def full(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns what is added to an array of this shape, in float32."""
        if self.down is None:
            return np.asarray(self.up, np.float32).reshape(shape)
        down, up = _matrices(self)
        return np.float32(self.scale) * (up @ down).reshape(shape)


Changes = Mapping[str, Change]
"""Changes by the published name of their array."""


class Factors(NamedTuple):
    """Changes as a network reads them beside its parameters (`jvdm.models.low_rank`).

    Attributes:
        low_rank: Tree of `kernel_down [in, R]` and `kernel_up [R, out]` in float32.
        whole: Tree of what is added to other arrays, in float32.
    """

    low_rank: Tree
    whole: Tree


def read(
    adapter: Adapter, table: Table, expected: Mapping[str, Any], prefix: str = ""
) -> dict[str, Change]:
    """Reads the changes of a network.

    Args:
        adapter: Where they are.
        table: What the arrays of the network are called.
        expected: Its parameters; leaves have a `shape`.
        prefix: Beginning of the keys that are its own, where a file has those of others too.

    Raises:
        WeightsError: If the file is broken, a key matches no array of the network, a shape
            does not fit, or half of a product is missing.
    """
    path = adapter.file
    tensors, settings = load_stored(path), _settings(adapter, prefix)
    tensors = {key: array for key, array in tensors.items() if key.startswith(prefix)}
    shapes = _published_shapes(table, expected)
    kohya = _kohya_names(table, shapes)
    parts: dict[str, dict[str, np.ndarray]] = {}
    lost: list[str] = []
    for key, array in tensors.items():
        module, ending = _split(key)
        name = kohya.get(module) or published_name(table, _stripped(module))
        kind = _ENDINGS.get(ending, "")
        target = f"{name}.{'bias' if kind == 'diff_b' else 'weight'}"
        if not kind or target not in shapes:
            lost.append(key)
            continue
        check_finite(path, key, array)
        parts.setdefault(target, {})[kind] = array
    if lost or not parts:
        names = [name.rpartition(".")[0] for name in shapes if name.endswith(".weight")]
        near = nearest(_stripped(_split(lost[0])[0]), names) if lost else ""
        what = f"{path}: {len(lost)} of {len(tensors)} arrays match nothing: {listed(sorted(lost))}"
        fix = f"{near[:200]}; use an adapter of this model" if near else "use another file"
        raise WeightsError(what, _whose(lost), fix)
    return {
        name: _change(path, name, found, shapes[name], settings) for name, found in parts.items()
    }


def fused(
    tree: Mapping[str, Any], table: Table, changes: Sequence[tuple[Changes, float]]
) -> dict[str, Any]:
    """Returns parameters with changes added, in their own number types.

    Sums are made in float32 and rounded once.

    Args:
        tree: Parameters of the network, as it has them.
        table: What its arrays are called.
        changes: Changes, each with its strength.
    """
    leaves = dict(flatten(tree))
    for rule in table.rules:
        leaf = leaves[rule.ours]
        found = [
            (index, change[name], strength)
            for index, name in enumerate(rule_names(rule, np.shape(leaf)))
            for change, strength in changes
            if name in change
        ]
        if not found:
            continue
        stacked = "{}" in rule.theirs
        wide = np.array(leaf, np.float32)
        for index, change, strength in found:
            part = wide[index] if stacked else wide
            part += np.float32(strength) * _ours(rule, change, part.shape)
        leaves[rule.ours] = wide.astype(leaf.dtype)
    return unflatten(leaves)


def factors(changes: Changes, table: Table, expected: Mapping[str, Any]) -> Factors:
    """Returns changes in the layout of the network, for use beside its parameters.

    Layers of a stack have factors of one rank, the largest; those of a smaller one, or that are
    not changed, are filled up with zeros, which change nothing.

    Args:
        changes: By published name.
        table: What the arrays of the network are called.
        expected: Its parameters; leaves have a `shape`.
    """
    low_rank: dict[str, np.ndarray] = {}
    whole: dict[str, np.ndarray] = {}
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(expected).items()}
    for rule in table.rules:
        names = rule_names(rule, shapes[rule.ours])
        found = {index: changes[name] for index, name in enumerate(names) if name in changes}
        if not found:
            continue
        stacked = "{}" in rule.theirs
        one = shapes[rule.ours][1:] if stacked else shapes[rule.ours]
        if len(one) != 2 or any(change.down is None for change in found.values()):
            array = np.zeros((len(names), *one), np.float32)
            for index, change in found.items():
                array[index] = _ours(rule, change, one)
            whole[rule.ours] = array if stacked else array[0]
            continue
        pairs = {index: _matrices(change) for index, change in found.items()}
        rank = max(len(right) for right, _ in pairs.values())
        down = np.zeros((len(names), one[0], rank), np.float32)
        up = np.zeros((len(names), rank, one[1]), np.float32)
        rows, columns = _places(rule, one)
        for index, (right, left) in pairs.items():
            down[index, :, : len(right)] = right[:, rows].T
            up[index, : len(right)] = np.float32(found[index].scale) * left[columns].T
        low_rank |= {f"{rule.ours}_down": down if stacked else down[0]}
        low_rank |= {f"{rule.ours}_up": up if stacked else up[0]}
    return Factors(unflatten(low_rank), unflatten(whole))


def _matrices(change: Change) -> tuple[np.ndarray, np.ndarray]:
    """Returns `down [rank, in]` and `up [out, rank]` in float32."""
    assert change.down is not None
    down, up = (np.asarray(array, np.float32) for array in (change.down, change.up))
    return down.reshape(len(down), -1), up.reshape(len(up), -1)


def _places(rule: Rule, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which published input and output each row and column of a kernel is.

    The layout says so itself, of arrays that number inputs and outputs.
    """
    theirs = rule.layout.theirs(np.broadcast_to(np.zeros((), np.int8), shape)).shape
    inputs = np.arange(shape[0], dtype=np.int32).reshape(1, *theirs[1:])
    outputs = np.arange(shape[1], dtype=np.int32).reshape(-1, *(1,) * (len(theirs) - 1))
    rows, columns = (
        rule.layout.ours(np.broadcast_to(numbers, theirs)) for numbers in (inputs, outputs)
    )
    return rows[:, 0], columns[0]


def changes_of(
    low_rank: Mapping[str, Any], table: Table, expected: Mapping[str, Any], scale: float
) -> dict[str, Change]:
    """Returns factors of a network as changes by published name: the inverse of `factors`.

    Their scale is 1, and `up` is multiplied by what it was: readers that know no alpha of a file,
    or not where it stands in the header, take it for that.

    Args:
        low_rank: Tree of `kernel_down` and `kernel_up`.
        table: What the arrays of the network are called.
        expected: Its parameters; leaves have a `shape`.
        scale: What their product is multiplied by.
    """
    leaves, shapes, made = flatten(low_rank), _published_shapes(table, expected), {}
    for rule in table.rules:
        if f"{rule.ours}_down" not in leaves:
            continue
        down, up = (np.asarray(leaves[f"{rule.ours}_{end}"], np.float32) for end in ("down", "up"))
        if "{}" not in rule.theirs:
            down, up = down[None], up[None]
        rows, columns = _places(rule, (down.shape[1], up.shape[2]))
        names = [rule.theirs.replace("{}", str(index)) for index in range(len(down))]
        for name, right, left in zip(names, down, up, strict=True):
            _, *inner = shapes[name]
            one = right[np.argsort(rows)].T.reshape(-1, *inner)
            other = np.float32(scale) * left.T[np.argsort(columns)]
            made[name] = Change(one, other.reshape(*other.shape, *(1,) * (len(inner) - 1)), 1.0)
    return made


def write(path: Path, changes: Mapping[str, Changes]) -> None:
    """Writes changes as Diffusers reads them, bit by bit as they are.

    Scales are kept as the alpha of every array, in the header.

    Args:
        path: Safetensors file.
        changes: Low-rank changes by published name, of every network by what begins its keys:
            `transformer.`.
    """
    tensors: dict[str, np.ndarray] = {}
    content: dict[str, Any] = {}
    for prefix, own in changes.items():
        if own:
            found, said = _written(own)
            tensors |= {f"{prefix}{name}": array for name, array in found.items()}
            content |= {f"{prefix}{name}": value for name, value in said.items()}
    header = {"format": "pt", METADATA: json.dumps(content, sort_keys=True)}
    save_stored(path, tensors, header)


def _written(changes: Changes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays and the settings of PEFT that changes of a network are."""
    tensors: dict[str, np.ndarray] = {}
    alphas: dict[str, float] = {}
    ranks: dict[str, int] = {}
    for name, change in changes.items():
        module = name.removesuffix(".weight")
        if change.down is None:
            raise WeightsError(f"{name} is changed as a whole", "low-rank changes are exported")
        tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(change.down)
        tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(change.up)
        ranks[module] = len(change.down)
        alphas[module] = change.scale * len(change.down)
    rank, alpha = max(ranks.values()), max(alphas.values())
    said = {"r": rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": alphas}
    return tensors, said | {"target_modules": sorted(ranks)}


def _ours(rule: Rule, change: Change, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a change in the layout of the network."""
    published = rule.layout.theirs(np.broadcast_to(np.zeros((), np.int8), shape)).shape
    return rule.layout.ours(change.full(published))


def _change(
    path: Path,
    name: str,
    found: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    settings: Mapping[str, Any],
) -> Change:
    """Returns the change that the parts of one array are, once they fit together."""
    whole = next((found[kind] for kind in ("diff", "diff_b") if kind in found), None)
    if whole is not None and len(found) == 1 and whole.size == math.prod(shape):
        return Change(None, whole, 1.0)
    if not {"down", "up"} <= found.keys() or whole is not None:
        what = f"{path}: {name} has {', '.join(sorted(found))}"
        raise WeightsError(what, "a low-rank change is a product of two", "download it again")
    down, up = found["down"], found["up"]
    if not down.size or not up.size:
        what = f"{path}: {name} is changed by {up.shape} times {down.shape}"
        raise WeightsError(what, "its rank is 0", "download it again")
    sizes = (len(up), up.size // len(up), len(down), down.size // len(down))
    if sizes[1] != sizes[2]:
        what = f"{path}: {name} is changed by {up.shape} times {down.shape}"
        why = f"one is of rank {sizes[1]}, the other of {sizes[2]}"
        raise WeightsError(what, why, "download it again")
    if sizes[0] != shape[0] or sizes[3] != math.prod(shape[1:]):
        what = f"{path} is of a network of another size: {name} is changed by {up.shape}"
        what = f"{what} times {down.shape}"
        raise WeightsError(what, f"here it is {shape}", "use an adapter of this model")
    module, rank = name.removesuffix(".weight"), len(down)
    alpha = settings.get("alpha_pattern", {}).get(module, settings.get("lora_alpha", rank))
    if "alpha" in found:
        if found["alpha"].size != 1:
            what = f"{path}: alpha of {name} is an array of {found['alpha'].shape}"
            raise WeightsError(what, "it is one number", "download it again")
        alpha = float(found["alpha"].reshape(()))
    return Change(down, up, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


_NETWORKS = {
    "LTX-Video": r"(?<!single_)transformer_blocks[._]\d+[._]attn2[._]",
    "CogVideoX, or another with joint attention": r"(?<!single_)transformer_blocks[._]\d+[._]attn",
    "HunyuanVideo or FLUX": r"(double|single(_transformer)?)_blocks",
    "Wan": r"(?<!transformer_)blocks[._]\d+[._](self_attn|cross_attn|attn[12]|ffn)[._]",
    "a text encoder": r"^(text_encoder|lora_te)",
    "Stable Diffusion": r"(down|up|input|output)_blocks",
}
"""How keys of adapters of well-known networks look."""


def _whose(keys: Sequence[str]) -> str:
    """Says which network keys are of, if that is known."""
    for network, pattern in _NETWORKS.items():
        if any(re.search(pattern, key) for key in keys):
            return f"these names are those of {network}"
    return "an adapter changes arrays of the network"


def _settings(adapter: Adapter, prefix: str) -> dict[str, Any]:
    """Returns what a file, or the folder of PEFT, says of alpha."""
    config = adapter.path / "adapter_config.json"
    if adapter.path.is_dir() and config.is_file():
        said = read_json(config, "configuration", WeightsError, "download it again")
    else:
        text = read_header(adapter.file)[1].get(METADATA, "{}")
        said = parse_json(text, adapter.file, "header", WeightsError, "download it again")
    if not isinstance(said, dict):
        raise WeightsError(f"{adapter.path} says nothing of its ranks", "an object was expected")
    said = {_stripped(key): value for key, value in said.items() if key.startswith(prefix)}
    pattern = said.get("alpha_pattern") or {}
    numbers = [said.get("lora_alpha", 1), *(pattern.values() if isinstance(pattern, dict) else "-")]
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise WeightsError(f"{adapter.path}: alpha is no number", "", "download it again")
    return {**said, "alpha_pattern": pattern}


def _published_shapes(table: Table, expected: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the published arrays of a network."""
    shapes = {}
    for rule in table.rules:
        shape = tuple(flatten(expected)[rule.ours].shape)
        one = shape[1:] if "{}" in rule.theirs else shape
        theirs = rule.layout.theirs(np.broadcast_to(np.zeros((), np.int8), one)).shape
        shapes |= dict.fromkeys(rule_names(rule, shape), theirs)
    return shapes


def _kohya_names(table: Table, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Returns the published modules by what Kohya's scripts call them, original or published."""
    modules = {name.rpartition(".")[0] for name in shapes}
    names = {module: module for module in modules} | {
        original: module for module in modules for original in original_names(table, module)
    }
    return {f"{_KOHYA}{name.replace('.', '_')}": module for name, module in names.items()}


def _split(key: str) -> tuple[str, str]:
    """Returns the module of a key, and which of its arrays it is."""
    for ending in _ENDINGS:
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}"), ending
    return key, ""


def _stripped(name: str) -> str:
    """Returns a name without what frameworks put before it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
