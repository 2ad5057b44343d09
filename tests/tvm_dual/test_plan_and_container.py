"""Plans as JSON, options, and library files as bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tvm_dual.container import atomic_write, read_container, write_container
from tvm_dual.errors import LibraryError, PlanError
from tvm_dual.gates import EFFORTS
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan, SitePlan, Trial


def example() -> Plan:
    site = SitePlan(
        *("gru0", "gru", "rows", "rows", "int8", "damage", "pca", 8, 8, True, 0.1, 0.2, 100, 30.5, "why"),
        gate_factors=(1.0, 2.0, 1.0),
    )
    trial = Trial("damage", 0.1, 0.2, 0.99, 12.5)
    return Plan((site,), "int8", "avx2", 1, "agreement", 1.0, 0.98, 0.05, 20.0, 12.5, EFFORTS, "ab", 300, (trial,))


def test_a_plan_survives_json():
    plan = example()
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("text", ["", "{", "nonsense"])
def test_text_that_is_not_json(text):
    with pytest.raises(PlanError, match="not JSON"):
        Plan.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"version": 99}'])
def test_json_that_is_no_plan(text):
    with pytest.raises(PlanError, match=r"version.*accepted"):
        Plan.from_json(text)


def change(edit) -> str:
    values = json.loads(example().to_json())
    edit(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    "edit, parts",
    [
        (lambda v: v.pop("isa"), ["Plan", "isa"]),
        (lambda v: v.update(surprise=1), ["Plan", "surprise"]),
        (lambda v: v["sites"][0].pop("kind"), ["SitePlan", "kind"]),
        (lambda v: v.update(sites=["gru0"]), ["SitePlan", "str"]),
        (lambda v: v.update(sites=None), ["sites"]),
        (lambda v: v.update(sites=5), ["sites"]),
    ],
)
def test_plans_with_wrong_fields(edit, parts):
    with pytest.raises(PlanError) as caught:
        Plan.from_json(change(edit))
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    "knob",
    [
        {"mode": "fast"},
        {"rule": "luck"},
        {"projection": "magic"},
        {"dimensions": 0},
        {"dimension_share": 0.0},
        {"dimension_share": 1.5},
        {"little_bits": 3},
        {"epsilon": 0.0},
        {"epsilon": 1.0},
        {"epsilon": float("nan")},
        {"closed_share": 0.0},
        {"closed_share": 1.1},
        {"gate_factors": {"q": 2.0}},
        {"gate_factors": {"f": 0.0}},
        {"site_dimensions": {"gru0": 0}},
        {"search_steps": -1},
    ],
)
def test_options_out_of_range(knob):
    with pytest.raises(PlanError, match=next(iter(knob))):
        AdvancedOptions(**knob)


def test_two_sizes_of_a_projection_contradict_each_other():
    with pytest.raises(PlanError, match=r"dimensions=8 and epsilon=0\.5.*accepted"):
        AdvancedOptions(dimensions=8, epsilon=0.5)


def test_directions_by_the_paper_s_error_bound():
    options = AdvancedOptions(epsilon=0.5, site_dimensions={"gru0": 33})
    assert options.site_size("lstm0", 3000, 6000) == 417
    assert options.site_size("lstm0", 100, 6000) == 100
    assert options.site_size("gru0", 3000, 6000) == 33


def test_directions_per_site():
    options = AdvancedOptions(site_dimensions={"gru0": 33})
    assert options.site_size("gru0", 100, 60) == 33
    assert options.site_size("gru0", 20, 60) == 20
    assert options.site_size("dense0", 100, 60) == 10
    assert options.site_size("dense0", 10, 60) == 4
    assert AdvancedOptions(dimensions=7).site_size("dense0", 100, 60) == 7


def test_a_container_gives_back_what_went_in(tmp_path):
    path = tmp_path / "a.so"
    arrays = {"thresholds/gru0": np.arange(6, dtype="float32").reshape(2, 3)}
    write_container(path, b"\x7fELF binary", arrays, {"isa": "avx2", "efforts": [0.0, float("inf")]})
    metadata, found = read_container(path)
    assert metadata == {"isa": "avx2", "efforts": [0.0, float("inf")]}
    assert list(found) == list(arrays)
    np.testing.assert_array_equal(found["thresholds/gru0"], arrays["thresholds/gru0"])
    assert path.read_bytes().startswith(b"\x7fELF binary") and [p.name for p in tmp_path.iterdir()] == ["a.so"]


def test_every_cut_and_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "a.so"
    write_container(path, b"\x7fELF" + bytes(40), {"a": np.ones(2, "float32")}, {"b": 1})
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(LibraryError, match=r"a\.so.*accepted"):
            read_container(path)
    for at in range(0, len(content), 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(LibraryError, match=r"a\.so.*accepted"):
            read_container(path)


@pytest.mark.parametrize("name", ["missing.so", "."])
def test_files_that_cannot_be_read(tmp_path, name):
    with pytest.raises(LibraryError, match=r"cannot be read.*accepted"):
        read_container(tmp_path / name)


def test_a_write_replaces_the_file_or_leaves_it(tmp_path):
    path = tmp_path / "a"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    (tmp_path / "folder").mkdir()
    for wrong in (tmp_path / "folder", tmp_path / "missing" / "a", path / "below"):
        with pytest.raises(LibraryError, match=r"cannot be written.*accepted"):
            atomic_write(wrong, b"three")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder"]
    assert not list((tmp_path / "folder").iterdir()) and path.read_bytes() == b"two"
