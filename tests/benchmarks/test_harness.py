"""The harness keeps engines apart, counts honestly, and writes the form the suites agree on."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.harness import EngineSpec, Harness, write_json
from tvm_dual.errors import DataError

FRAMES = np.arange(24, dtype=np.float32).reshape(8, 3)


class Adder:
    """Adds up the frames it has seen; misbehaves on request."""

    def __init__(self, trouble=""):
        self.trouble = trouble
        self.reset()
        if trouble == "raise":
            raise ValueError("no such model")

    def step(self, frame):
        if self.trouble == "hang":
            time.sleep(60)
        if self.trouble == "die":
            os.abort()
        self.total = self.total + frame
        return self.total

    def reset(self):
        self.total = np.zeros(3, np.float32)

    def facts(self):
        return {"cores": sorted(os.sched_getaffinity(0)), "omp": os.environ["OMP_NUM_THREADS"], "density": 0.25}


def spec(trouble=""):
    return EngineSpec("adder", "dense", "fp32", f"{__name__}:Adder", {"trouble": trouble})


def test_failures_become_rows_and_the_others_go_on():
    with Harness([spec("raise"), spec("hang"), spec(), spec("die")], timeout_s=5, settle_s=0) as harness:
        harness.measure(FRAMES, rounds=3, steps=5, warmup=1)
        outputs = harness.outputs({"a": FRAMES})
        raised, hung, fine, died = harness.rows()
    assert raised["error"] == "ValueError: no such model"
    assert "no answer to 'measure' within 5 s" in hung["error"]
    assert "ended with code -6" in died["error"]
    assert "error" not in fine and len(fine["rounds_ms"]) == 3
    assert [clips is None for clips in outputs] == [True, True, False, True]


def test_rows_hold_times_facts_and_the_pinning():
    seen = []
    with Harness([spec()], settle_s=0, progress=lambda *told: seen.append(told)) as harness:
        harness.measure(FRAMES, rounds=2, steps=50)
        (row,) = harness.rows()
    assert {"engine": "adder", "mode": "dense", "precision": "fp32"}.items() <= row.items()
    assert 0 < row["median_ms"] <= row["p95_ms"] and len(row["rounds_ms"]) == 2
    assert row["cores"] == sorted(os.sched_getaffinity(0))[:1] and row["omp"] == "1" and row["density"] == 0.25
    assert row["peak_resident_bytes"] > 1e6 and row["load_seconds"] > 0 and row["idle_cpu_ms"] >= 0
    assert [told[1:] for told in seen[-2:]] == [(1, 2), (2, 2)]


def test_outputs_start_each_clip_from_the_reset_state():
    with Harness([spec()], settle_s=0) as harness:
        (clips,) = harness.outputs({"a": FRAMES, "b": FRAMES[:2]})
    np.testing.assert_array_equal(clips["a"], np.cumsum(FRAMES, axis=0))
    np.testing.assert_array_equal(clips["b"], clips["a"][:2])


def test_an_engine_may_have_threads_of_its_own():
    with Harness([spec(), replace(spec(), threads=1)], settle_s=0) as harness:
        usual, own = harness.rows()
    assert "threads" not in usual and own["threads"] == len(own["cores"]) == 1
    with pytest.raises(DataError, match="threads is 10000"):
        Harness([replace(spec(), threads=10_000)])


@pytest.mark.parametrize("threads", [0, 10_000])
def test_more_threads_than_cores_are_refused(threads):
    with pytest.raises(DataError, match="choose 1 to"):
        Harness([spec()], threads=threads)


def test_nothing_to_measure_is_refused():
    with Harness([]) as harness, pytest.raises(DataError, match="0 frames"):
        harness.measure(FRAMES[:0])


def test_json_form(tmp_path):
    rows = [{"engine": "adder", "mode": "dense", "precision": "fp32", "error": "gone"}]
    write_json(tmp_path / "out.json", "sums", 1, rows)
    document = json.loads((tmp_path / "out.json").read_text())
    assert list(document) == ["suite", "threads", "cpu", "versions", "rows"]
    assert document["suite"] == "sums" and document["threads"] == 1 and document["rows"] == rows
    assert document["cpu"]["name"] and document["versions"]["numpy"] == np.__version__


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "out.json").write_text("before")
    with pytest.raises(ValueError):
        write_json(tmp_path / "out.json", "sums", 1, [{"median_ms": float("nan")}])
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert (tmp_path / "out.json").read_text() == "before"


def test_pictures_are_drawn(tmp_path):
    from benchmarks.plots import demo_picture, latency_bars, spectrograms

    rows = [
        {"engine": "tvm_dual", "mode": "dual", "precision": "int8", "median_ms": 0.2, "p95_ms": 0.3},
        {"engine": "torch", "mode": "dense", "precision": "fp32", "median_ms": 1.2, "p95_ms": 1.3},
        {"engine": "openvino", "mode": "dense", "precision": "bf16", "error": "no bf16"},
    ]
    panels = [(title, np.sin(np.arange(4800) / 7)) for title in ("noisy", "dense", "dual")]
    latency_bars(rows, tmp_path / "bars.png", "sums")
    spectrograms(panels, 48_000, tmp_path / "sounds.png")
    demo_picture(rows, panels, 48_000, tmp_path / "demo.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5_000 for name in ("bars", "sounds", "demo"))
