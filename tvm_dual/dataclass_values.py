"""Frozen dataclasses from what ``asdict`` and JSON made of them."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache

from tvm_dual.errors import PlanError


def from_dict(cls, values):
    """Rebuild a frozen dataclass, nested ones included, from what ``asdict`` and JSON made of it.

    Raises
    ------
    PlanError
        If a field is missing or unknown.
    """
    hints, names, required = _fields(cls)
    if not isinstance(values, dict) or not required <= set(values) <= names:
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise PlanError(f"{cls.__name__}: found fields {found}; accepted: {sorted(names)}")
    return cls(**{name: _rebuilt(cls, name, hints[name], value) for name, value in values.items()})


@cache
def _fields(cls) -> tuple[dict, frozenset[str], frozenset[str]]:
    """Return a dataclass's types by name, its names, and those without a default; a log has thousands of each class."""
    fields, missing = dataclasses.fields(cls), dataclasses.MISSING
    required = frozenset(f.name for f in fields if f.default is missing and f.default_factory is missing)
    return typing.get_type_hints(cls), frozenset(f.name for f in fields), required


def _rebuilt(cls, name: str, hint, value):
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise PlanError(f"{cls.__name__}: {name} is {value!r}; accepted: a list")
        return tuple(_rebuilt(cls, name, arguments[0], item) for item in value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and value is not None:
        return _rebuilt(cls, name, next(a for a in arguments if a is not type(None)), value)
    return value
