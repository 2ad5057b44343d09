"""Instruction set levels and what is chosen from the CPU's flags."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tvm

from schedules import cpu


def test_the_best_level_whose_flags_are_all_present_is_native():
    assert cpu.native_isa(frozenset(cpu.ISAS["amx"].requires)).name == "amx"
    assert cpu.native_isa(frozenset(cpu.ISAS["avx512_vnni"].requires)).name == "avx512_vnni"
    assert cpu.native_isa(frozenset(cpu.ISAS["avx512"].requires)).name == "avx512"
    assert cpu.native_isa(frozenset({"avx2", "fma", "avx512f"})).name == "avx2"


def test_a_cpu_without_avx2_has_no_native_level():
    assert cpu.native_isa(frozenset({"sse4_2"})) is None


def test_missing_flags_are_named_in_the_order_of_the_requirements():
    isa = cpu.ISAS["avx512_vnni"]
    assert cpu.missing_flags(isa, frozenset({"avx2", "fma", "avx512f", "avx512bw"})) == [
        "avx512dq",
        "avx512vl",
        "avx512_vnni",
    ]
    assert cpu.missing_flags(isa, frozenset(isa.requires)) == []


def test_this_machine_misses_nothing_of_its_native_level():
    native = cpu.native_isa()
    if native is None:
        pytest.skip("this CPU lacks avx2")
    assert cpu.missing_flags(native) == []


def test_tiles_that_linux_refuses_are_missing(monkeypatch):
    amx = cpu.ISAS["amx"]
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(amx.requires))
    monkeypatch.setattr(cpu, "request_tiles", lambda: False)
    assert cpu.missing_flags(amx) == [cpu.NO_TILES]
    assert cpu.native_isa().name == "avx512_vnni"
    monkeypatch.setattr(cpu, "request_tiles", lambda: True)
    assert cpu.missing_flags(amx) == []
    assert cpu.native_isa().name == "amx"


def test_tiles_are_given_where_the_cpu_has_them():
    if not {"amx_tile", "amx_int8"} <= cpu.cpu_flags():
        pytest.skip("this CPU lacks amx_tile or amx_int8")
    assert cpu.request_tiles() == (cpu.missing_flags(cpu.ISAS["amx"]) == [])


def test_only_levels_with_vnni_use_all_eight_bits_of_an_activation():
    assert {isa.name: isa.activation_levels for isa in cpu.ISAS.values()} == {
        "amx": 255,
        "avx512_vnni": 255,
        "avx512": 127,
        "avx2": 127,
    }


def test_lanes_follow_the_register_width_and_rows_fill_cache_lines():
    assert [(i.lanes, i.row_bytes) for i in cpu.ISAS.values()] == [(16, 64), (16, 64), (16, 64), (8, 64)]


@pytest.mark.parametrize("name", list(cpu.ISAS))
def test_the_target_names_the_cpu_and_the_number_of_cores(name):
    target = cpu.tvm_target(cpu.ISAS[name], 3)
    assert isinstance(target, tvm.target.Target)
    assert str(target.attrs["mcpu"]) == cpu.ISAS[name].mcpu
    assert int(target.attrs["num-cores"]) == 3


def test_there_is_at_least_one_core_and_a_cpu_has_a_name():
    assert cpu.available_cores() >= 1
    assert isinstance(cpu.cpu_name(), str)


@pytest.mark.parametrize("shape", [(0,), (1,), (37, 19)])
@pytest.mark.parametrize("alignment", [64, 4096])
def test_aligned_arrays_start_where_asked(shape, alignment):
    array = cpu.aligned_empty(shape, "float32", alignment)
    assert array.shape == shape and array.dtype == np.float32
    assert array.size == 0 or array.ctypes.data % alignment == 0


def test_kernels_run_on_as_many_threads_as_asked_for_if_there_are_cores():
    # In a thread of its own: a pool belongs to the thread that calls, and keeps its first size.
    found = []

    def ask() -> None:
        for count in (1, 2, 1000):
            cpu.use_threads(count)
            found.append(tvm.get_global_func("runtime.NumThreads")())

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    assert found == [min(count, cpu.available_cores()) for count in (1, 2, 1000)]
