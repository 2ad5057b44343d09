"""Frozen dataclasses from what ``asdict`` and JSON made of them."""

from __future__ import annotations

import dataclasses
import types
import typing

from tvm_dual.errors import PlanError


def from_dict(cls, values):
    """Rebuild a frozen dataclass, nested ones included, from what ``asdict`` and JSON made of it.

    Raises
    ------
    PlanError
        If a field is missing or unknown.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if not isinstance(values, dict) or not required <= set(values) <= names:
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise PlanError(f"{cls.__name__}: found fields {found}; accepted: {sorted(names)}")
    return cls(**{name: _rebuilt(cls, name, hints[name], value) for name, value in values.items()})


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
