"""What all tests share."""

from __future__ import annotations

import inspect
import linecache
import sys

import pytest


def _plain_frames(frame, context: int = 0) -> list[inspect.FrameInfo]:
    """Return what ``inspect.getouterframes`` does, source lines only of the nearest frames."""
    frames = []
    while frame:
        name, line = frame.f_code.co_filename, frame.f_lineno
        # The parser looks at these to see whether a function stands in a class.
        source = [linecache.getline(name, line)] if len(frames) < 4 else None
        frames.append(inspect.FrameInfo(frame, name, line, frame.f_code.co_name, source, None))
        frame = frame.f_back
    return frames


@pytest.fixture(scope="session", autouse=True)
def quick_parser():
    """Keep TVMScript's parser from reading the sources of all its callers, of which pytest adds many.

    For every function and macro it asks ``inspect`` for the frames on the stack, of which it needs
    the variables and the nearest lines; under pytest that took longer than to parse and compile a kernel.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "getouterframes", _plain_frames)
        patch.setattr(inspect, "stack", lambda context=0: _plain_frames(sys._getframe(1)))
        yield
