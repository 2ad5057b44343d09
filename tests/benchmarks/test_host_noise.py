"""What is taken from plain arithmetic is the machine's."""

import time

from benchmarks import host_noise


def test_a_disturbance_is_found(monkeypatch):
    calls = iter(range(10_000_000))

    def piece(rounds):
        time.sleep(0.004 if rounds != 1000 and next(calls) % 10 == 0 else 0.0002)

    monkeypatch.setattr(host_noise, "piece", piece)
    found = host_noise.measure(pieces=100)
    assert 0.1 <= found.disturbed_share < 0.5 and found.median_extra > 1000 and found.median_distance > found.median
    assert f"p95 / median {found.p95 / found.median:.2f}" in str(found)
