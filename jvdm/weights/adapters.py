"""Which network a file of low-rank changes is of, where a model has two.

Wan 2.2 A14B has one network for noise and one for what is left, and adapters come as a file for
each. A file says which it is of by what is asked for (`high=PATH`), by its keys, where those of the
second network begin with the name of its folder (`transformer_2.`), or by its own name, as those
for ComfyUI do (`..._high_noise.safetensors`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jvdm.errors import ConfigError, WeightsError
from jvdm.weights import lora
from jvdm.weights.convert import Table
from jvdm.weights.lora import Adapter, Changes
from jvdm.weights.safetensors import read_header


class Network(NamedTuple):
    """A network that changes may be of.

    Attributes:
        folder: Folder of its weights.
        table: What its arrays are called.
        expected: Its parameters; leaves have a `shape`.
    """

    folder: str
    table: Table
    expected: Mapping[str, Any]


def read_changes(adapter: Adapter, networks: Mapping[str, Network]) -> dict[str, Changes]:
    """Reads the changes of every network that a file is of, by name.

    Args:
        adapter: Where they are.
        networks: By name; the only one of a model is called "".

    Raises:
        ConfigError: If the network that was asked for is none, or nothing says which it is.
        WeightsError: If the file is broken, or of another network.
    """
    first, *others = networks.values()
    if adapter.network and adapter.network not in networks:
        known = f"its networks are {', '.join(networks)}" if others else "the model has one network"
        fix = "write " + (" or ".join(f"{name}=PATH" for name in networks) if others else "PATH")
        raise ConfigError(f"--lora {adapter.label} is for {adapter.network!r}", known, fix)
    if not others:
        return {"": lora.read(adapter, first.table, first.expected)}
    second = tuple(f"{network.folder}." for network in others)
    is_of_all = any(key.startswith(second) for key in read_header(adapter.file)[0])
    if adapter.network:
        wanted = [adapter.network]
    else:
        wanted = list(networks) if is_of_all else [_said(adapter, networks)]
    found = {}
    for name in wanted:
        network = networks[name]
        keys = f"{network.folder}." if is_of_all else ""
        found[name] = lora.read(adapter, network.table, network.expected, keys)
    return found


def said_by(name: str, networks: Iterable[str]) -> list[str]:
    """Returns which networks the name of a file says: `high` for `a_high_noise` or `aHighNoise`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return [one for one in networks if re.search(rf"(?<![a-z]){one}[-_. ]?noise", words)]


def _said(adapter: Adapter, networks: Mapping[str, Network]) -> str:
    """Returns the network that the name of a file says.

    Raises:
        WeightsError: If it says none, or more than one.
    """
    said = said_by(adapter.path.name, networks)
    if len(said) == 1:
        return said[0]
    names = ", ".join(networks)
    what = f"{adapter.path} does not say which of the networks {names} it changes"
    fix = " ".join(f"{name}=PATH" for name in networks)
    raise WeightsError(what, "an adapter is trained for one of them", f"write --lora {fix}")
