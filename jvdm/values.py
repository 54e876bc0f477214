"""Frozen values as JSON and back: the name of the class and its fields, recursively.

Modules, policies, solvers and rules are frozen dataclasses of numbers, text, tuples and one
another, so a manifest can say what they are. A value that a function makes (a `Process`)
says how in `recipe`; a function that is used as a value is named.
"""

import dataclasses
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from jvdm.errors import ConfigError, WeightsError, shortened

CLASS, RECIPE, FUNCTION, ARRAY = "class", "recipe", "function", "array"
_OURS = ("jvdm", "pallas_kernels")
_Maker = TypeVar("_Maker", bound=Callable[..., Any])


def recipe(make: _Maker) -> _Maker:
    """Decorates a function whose result has a field `recipe`, in which the call is kept."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        given = tuple(signature.bind(*args, **kwargs).arguments.items())
        return dataclasses.replace(make(*args, **kwargs), recipe=(name_of(make), given))

    made.__dict__["makes"] = True
    return made  # pyright: ignore[reportReturnType]


def name_of(item: Any) -> str:
    """Returns where a class or function is defined, as `module:name`."""
    return f"{_module_of(item)}:{item.__qualname__}"


def _module_of(item: Any) -> str:
    """Returns the module of a class or function; that of a program has the name it was run by."""
    program = getattr(sys.modules["__main__"], "__spec__", None)
    return program.name if item.__module__ == "__main__" and program else item.__module__


def fields_of(value: Any) -> dict[str, Any]:
    """Returns the fields that make a dataclass or Linen module, by name."""
    inherited = ("parent", "name") if hasattr(value, "scope") else ()
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.init and field.name not in inherited
    }


def parts_of(value: Any) -> dict[str, Any]:
    """Returns what a value was made from, by name.

    These are fields, arguments of its recipe, or entries of a tuple, called 0, 1, ...
    """
    if isinstance(value, tuple):
        return {str(index): item for index, item in enumerate(value)}
    if not getattr(value, RECIPE, None):
        return fields_of(value) if dataclasses.is_dataclass(value) else {}
    name, given = value.recipe
    bound = inspect.signature(find(name)).bind(**dict(given))
    bound.apply_defaults()
    return dict(bound.arguments)


def remade(value: Any, name: str, part: Any) -> Any:
    """Returns the value made with another part (`parts_of`)."""
    if isinstance(value, tuple):
        return tuple((parts_of(value) | {name: part}).values())
    if not getattr(value, RECIPE, None):
        return dataclasses.replace(value, **{name: part})
    maker, given = value.recipe
    return find(maker)(**dict(given) | {name: part})


def to_data(value: Any, where: str = "") -> Any:
    """Returns `value` as JSON data that `from_data` reads.

    Args:
        value: A frozen dataclass, Linen module, number, text, tuple, function, dtype or small
            array of numbers.
        where: What the value is, for the error.

    Raises:
        ConfigError: If it holds something else, or something that no other process could
            import, such as a class defined in a function.
    """
    if getattr(value, RECIPE, None):
        name, given = value.recipe
        arguments = {key: to_data(item, f"{where}.{key}") for key, item in given}
        return {RECIPE: name, "arguments": arguments}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        _check_importable(kind, where)
        data = {key: to_data(item, f"{where}.{key}") for key, item in fields_of(value).items()}
        return {CLASS: name_of(kind), **data}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [to_data(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "__array__") and not isinstance(value, type):  # numpy's or JAX's
        return {ARRAY: np.asarray(value).tolist()}
    if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):
        return np.dtype(value).name
    if isinstance(value, types.FunctionType) or callable(value) and hasattr(value, "__qualname__"):
        _check_importable(value, where)
        return {FUNCTION: name_of(value)}
    raise ConfigError(
        f"{where.strip('.') or 'a value'} is {value!r}",
        "it cannot be written as JSON",
        "use numbers, text, tuples and frozen dataclasses of these",
    )


def from_data(data: Any) -> Any:
    """Returns the value that JSON data describes; lists are tuples.

    Raises:
        WeightsError: If a class is not there or has other fields.
    """
    if isinstance(data, list):
        return tuple(from_data(item) for item in data)
    if not isinstance(data, dict):
        return data
    if ARRAY in data:
        return np.asarray(data[ARRAY], np.float32)
    fields = {key: from_data(item) for key, item in data.items() if key not in (CLASS, RECIPE)}
    if RECIPE in data:
        return _made(data[RECIPE], fields.get("arguments", {}))
    if CLASS in data:
        return _made(data[CLASS], fields)
    return find(data[FUNCTION]) if FUNCTION in data else fields


def find(name: str) -> Any:
    """Returns the class or function called `module:name`.

    Only modules of jvdm are imported; another one must have been imported before, and none of
    Python's own counts, because a file that comes with weights does not decide what is run.

    Raises:
        WeightsError: If there is no such module or name.
    """
    module_name, _, qualified = str(name).partition(":")
    ours = module_name.split(".")[0] in _OURS
    try:
        if module_name.split(".")[0] in sys.stdlib_module_names:
            raise KeyError(module_name)
        item: Any = importlib.import_module(module_name) if ours else sys.modules[module_name]
        for part in qualified.split("."):
            item = getattr(item, part)
        return item
    except (ImportError, AttributeError, KeyError, ValueError) as error:
        fix = "update jvdm" if ours else f"import {module_name} before the weights are loaded"
        raise WeightsError(f"{name} is named", "this jvdm does not have it", fix) from error


def _made(name: str, arguments: dict[str, Any]) -> Any:
    make = find(name)
    if not (isinstance(make, type) and dataclasses.is_dataclass(make) or hasattr(make, "makes")):
        what = f"{name} is named as a class"
        raise WeightsError(what, "it is neither a dataclass nor a recipe", "export again")
    try:
        return make(**arguments)
    except TypeError as error:
        what = f"a {str(name).rpartition(':')[2]} is described that this jvdm cannot build"
        why = shortened(str(error))
        raise WeightsError(what, why, "update jvdm, or export the weights again") from error


def _check_importable(item: Any, where: str) -> None:
    refused = {"__main__", *sys.stdlib_module_names}
    top = _module_of(item).split(".")[0]
    if "<" in item.__qualname__ or item.__module__ not in sys.modules or top in refused:
        raise ConfigError(
            f"{where.strip('.') or 'a value'} is {item.__qualname__} of {item.__module__}",
            "a manifest names what another process can import",
            "define it at the top of a module",
        )
