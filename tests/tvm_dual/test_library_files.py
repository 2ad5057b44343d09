"""A library as a file: reloaded, deployed, damaged, of another version, for another CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tvm_dual
from tvm_dual.container import read_container, write_container
from tvm_dual.errors import LibraryError, PlanError

ROOT = Path(__file__).parents[2]
INF = float("inf")


def test_a_reloaded_library_gives_the_same_bits(gated, library_file, calibration, run_stream):
    again = tvm_dual.load(library_file)
    assert again.metadata == gated.metadata
    np.testing.assert_array_equal(run_stream(again, calibration[0]), run_stream(gated, calibration[0]))
    again.effort = gated.effort = INF
    np.testing.assert_array_equal(run_stream(again, calibration[0][:9]), run_stream(gated, calibration[0][:9]))
    gated.effort = 1.0


SCRIPT = """
import sys
for name in ("torch", "xgboost", "onnx", "scipy", "matplotlib", "rich"):
    sys.modules[name] = None
import numpy as np
import tvm_dual
import tvm_dual.calibration
step = tvm_dual.load(sys.argv[1]).stream()
np.save(sys.argv[3], np.stack([step(frame).reshape(-1) for frame in np.load(sys.argv[2])]))
"""


@pytest.mark.parametrize("runtime_alone", [False, True])
def test_a_deployment_machine(gated, library_file, calibration, run_stream, tmp_path, runtime_alone):
    np.save(tmp_path / "x.npy", calibration[0][:30])
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"TVM_USE_RUNTIME_LIB": "1"} if runtime_alone else {})
    command = [sys.executable, "-c", SCRIPT, str(library_file), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), run_stream(gated, calibration[0][:30]))


def test_export_to_where_nothing_can_be_written(gated, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "folder", tmp_path / "missing" / "a.so", tmp_path / "file" / "a.so", Path("/proc/a.so")):
        with pytest.raises(LibraryError, match=r"cannot be written.*accepted"):
            gated.export_library(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert not list((tmp_path / "folder").iterdir())


def test_files_that_are_no_library(library_file, tmp_path):
    content = library_file.read_bytes()
    path = tmp_path / "broken.so"
    middle = len(content) // 2
    for wrong in (b"", b"text", content[:-1], content[:middle], content[:middle] + b"\0" + content[middle:]):
        path.write_bytes(wrong)
        with pytest.raises(LibraryError, match=r"broken\.so.*accepted"):
            tvm_dual.load(path)
    for at in (0, 5000, middle, len(content) - 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        with pytest.raises(LibraryError, match=r"broken\.so.*accepted"):
            tvm_dual.load(path)
    with pytest.raises(LibraryError, match="cannot be read"):
        tvm_dual.load(tmp_path / "missing.so")


def test_a_library_of_another_version(library_file, tmp_path):
    raw, arrays = read_container(library_file)
    for change in ({"versions": raw["versions"] | {"apache-tvm": "0.1"}}, {"format": 99}, {"versions": None}):
        write_container(tmp_path / "old.so", b"\x7fELF", arrays, json.loads(json.dumps(raw | change)))
        with pytest.raises(LibraryError, match=r"old\.so.*another version.*accepted"):
            tvm_dual.load(tmp_path / "old.so")


def test_a_cpu_that_lacks_something(library_file, monkeypatch):
    monkeypatch.setattr("tvm_dual.metadata.missing_flags", lambda isa: ["avx512_vnni"])
    with pytest.raises(LibraryError, match=r"lacks avx512_vnni.*avx2"):
        tvm_dual.load(library_file)


def test_a_step_of_planning_is_no_product(builder, tmp_path):
    with pytest.raises(LibraryError, match="accepted"):
        builder._dense.export_library(tmp_path / "a.so")
    with pytest.raises(PlanError, match="accepted"):
        _ = builder._dense.report
