"""What is taken from plain arithmetic is the machine's."""

from types import SimpleNamespace

import pytest

from benchmarks import host_noise


def test_a_disturbance_is_found(monkeypatch):
    clock, calls = [0.0], iter(range(10_000_000))

    def piece(rounds):
        disturbed = rounds != 1000 and next(calls) % 10 == 0
        clock[0] += rounds * 1e-7 + (4e-3 if disturbed else 0.0)

    monkeypatch.setattr(host_noise, "piece", piece)
    monkeypatch.setattr(host_noise, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    found = host_noise.measure(pieces=100, microseconds=50.0)
    assert found.median == pytest.approx(50) and found.disturbed_share == pytest.approx(0.1)
    assert found.median_extra == pytest.approx(4000) and found.median_distance == pytest.approx(4500)
    assert f"p95 / median {found.p95 / found.median:.2f}" in str(found)
