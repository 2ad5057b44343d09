"""Parsing TVMScript macros without reading the source of every frame on the stack.

For each macro that is expanded, TVM 0.27 lists the frames of the call stack with their files and lines, only to
look at their globals: two thirds of the time that a kernel takes to parse.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager


def _parser_on_the_stack(macro):
    """Return the parser that is expanding `macro`, as ``ScriptMacro._find_parser_def`` does."""
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_globals.get(macro.parser_object_name)
        if parser is not None:
            return parser
        frame = frame.f_back
    raise RuntimeError(f"{macro.parser_object_name} is on no frame of the stack")


@contextmanager
def quick_macros() -> Iterator[None]:
    """Parse macros the quick way within the scope."""
    from tvm.script.parser.core.parser import ScriptMacro

    slow = ScriptMacro._find_parser_def
    ScriptMacro._find_parser_def = _parser_on_the_stack
    try:
        yield
    finally:
        ScriptMacro._find_parser_def = slow
