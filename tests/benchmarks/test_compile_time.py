"""The measurement of compile times."""

from __future__ import annotations

import pytest

from benchmarks import compile_time

pytest.importorskip("torch")


PARTS = {"import_seconds", "compile_seconds"}


def test_both_parts_are_timed(monkeypatch):
    monkeypatch.setattr(compile_time, "UNITS", 16)
    assert set(compile_time.measure(30)) == PARTS
    monkeypatch.setattr(compile_time, "CHANNELS", 8)
    assert set(compile_time.measure_convolutions(2)) == PARTS
