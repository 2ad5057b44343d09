"""The command line: statuses and messages, a build end to end, and what ``inspect`` prints."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import onnx
import pytest
import tvm

import tvm_dual
from tvm_dual.cli import main
from tvm_dual.container import atomic_write, write_container


@pytest.fixture
def files(tmp_path, model, calibration):
    """Return the model and calibration data as files."""
    onnx.save(model, tmp_path / "tiny.onnx")
    np.savez(tmp_path / "data.npz", *[stream[:80] for stream in calibration])
    return tmp_path


def arguments(folder, **changes) -> list[str]:
    values = {"model": folder / "tiny.onnx", "calibration": folder / "data.npz", "out": folder / "out.so"} | changes
    options = ["--calibration", values["calibration"], "--out", values["out"], "--streaming", "--precision", "fp32"]
    return ["build", *map(str, [values["model"], *options])]


def test_build_inspect_and_load(files, capsys, monkeypatch, calibration):
    # The search is checked elsewhere; here the shortest build will do.
    from tvm_dual import search

    monkeypatch.setattr(search, "LADDER", {rule: ladder[:1] for rule, ladder in search.LADDER.items()})
    assert main([*arguments(files), "--max-drop", "0"]) == 0
    out = capsys.readouterr().out
    assert "gru0" in out and "out.so" in out
    assert main(["inspect", str(files / "out.so")]) == 0
    out = capsys.readouterr().out
    assert "tvm_dual 0.1.0" in out and "gru0" in out and "thread" in out
    assert main(["inspect", "--json", str(files / "out.so")]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["precision"] == "fp32"
    assert np.isfinite(tvm_dual.load(files / "out.so").stream()(calibration[0][0])).all()


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"model": "missing.onnx"}, "missing.onnx"),
        ({"calibration": "missing.npz"}, "missing.npz"),
        ({"out": "/missing/folder/out.so"}, "--out '/missing/folder/out.so': cannot be written"),
        ({"out": "/"}, "--out '/': cannot be written"),
    ],
)
def test_wrong_files(files, capsys, changes, text):
    assert main(arguments(files, **changes)) == 2
    error = capsys.readouterr().err
    assert error.startswith("tvm-dual: ") and text in error and "Traceback" not in error
    assert not (files / "out.so").exists()


def test_calibration_that_is_no_npz(files, capsys):
    (files / "data.npz").write_bytes(b"text")
    assert main(arguments(files)) == 2
    assert "data.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, text",
    [
        (["--threads", "0"], "threads: found 0"),
        (["--target", "arm"], "'arm' is not known"),
        (["--dump", "tiny.onnx"], "dump 'tiny.onnx': cannot be written"),
    ],
)
def test_wrong_settings_are_one_line(files, capsys, monkeypatch, more, text):
    monkeypatch.chdir(files)
    assert main([*arguments(files), *more]) == 2
    error = capsys.readouterr().err
    assert text in error and len(error.splitlines()) == 1
    assert not (files / "out.so").exists()


def test_an_interrupt_leaves_nothing(files, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(files / "out.so", b"content")
    monkeypatch.setattr("tvm_dual.builder.build", interrupted)
    assert main(arguments(files)) == 130
    assert capsys.readouterr().err.splitlines() == ["tvm-dual: interrupted; nothing half-written is left"]
    assert sorted(path.name for path in files.iterdir()) == ["data.npz", "tiny.onnx"]


def test_an_interrupt_within_a_pass(files, capsys, monkeypatch):
    @tvm.transform.module_pass(opt_level=0)
    def interrupted(module, _context):
        os.kill(os.getpid(), signal.SIGINT)
        return module

    monkeypatch.setattr("tvm_dual.builder.build", lambda *_, **__: interrupted(tvm.IRModule()))
    before = signal.getsignal(signal.SIGINT)
    assert main(arguments(files)) == 130
    assert capsys.readouterr().err.splitlines() == ["tvm-dual: interrupted; nothing half-written is left"]
    assert signal.getsignal(signal.SIGINT) is before


def test_inspect_of_another_format(tmp_path, capsys):
    write_container(tmp_path / "old.so", b"\x7fELF", {}, {"format": 1})
    assert main(["inspect", str(tmp_path / "old.so")]) == 2
    assert "old.so' has the file format 1; accepted" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"text", bytes(500)])
def test_inspect_of_something_else(tmp_path, capsys, content):
    (tmp_path / "a.so").write_bytes(content)
    assert main(["inspect", str(tmp_path / "a.so")]) == 2
    assert "a.so" in capsys.readouterr().err


def test_unknown_suite(capsys, tmp_path):
    assert main(["bench", "nothing", "--json", str(tmp_path / "a.json")]) == 2
    assert "nsnet2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [[], ["fly"], ["build"], ["build", "a", "--calibration", "b", "--out", "c", "--precision", "x"]]
)
def test_usage(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err
