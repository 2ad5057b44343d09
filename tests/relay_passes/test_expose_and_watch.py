"""ExposeInputs, and the passes that change nothing: LogProgress and DumpModule."""

from __future__ import annotations

import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.expose_inputs import ExposeInputs
from relay_passes.instrument import DumpModule, LogProgress
from relay_passes.mark_sites import MarkSites


def test_inputs_of_sites_become_outputs(tools):
    @I.ir_module
    class Before:
        @R.function(private=True)
        def dense0(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            R.func_attr({"Composite": "dual.dense", "Primitive": True, "dual.nonnegative": 0, "dual.site": "dense0"})
            with R.dataflow():
                o = R.matmul(x, w)
                R.output(o)
            return o

        @R.function
        def main(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            cls = Before
            with R.dataflow():
                y = cls.dense0(x, w)
                o = R.tanh(y)
                R.output(o)
            return o

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def dense0(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            R.func_attr({"Composite": "dual.dense", "Primitive": True, "dual.nonnegative": 0, "dual.site": "dense0"})
            with R.dataflow():
                o = R.matmul(x, w)
                R.output(o)
            return o

        @R.function
        def main(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32")) -> R.Tuple(
            R.Tensor((1, 6), "float32"), R.Tensor((1, 4), "float32")
        ):
            R.func_attr({"dual.observed": ["dense0.0"]})
            cls = Expected
            with R.dataflow():
                seen = R.multiply(x, R.const(1.0, "float32"))
                y = cls.dense0(x, w)
                o = R.tanh(y)
                R.output(seen, o)
            result = (o, seen)
            return result

    weights = {"w": tools.normal(4, 6)}
    tvm.ir.assert_structural_equal(ExposeInputs()(tools.bound(Before, **weights)), tools.bound(Expected, **weights))


def test_a_recurrent_site_gives_input_and_state(tools):
    h = 3
    module = tools.gru_module(tools.normal(3 * h, 5), tools.normal(3 * h, h), tools.normal(6 * h), 1)
    main = ExposeInputs()(MarkSites()(module))["main"]
    assert list(map(str, main.attrs["dual.observed"])) == ["gru0.0", "gru0.1"]
    shapes = [tuple(int(n) for n in field.shape) for field in main.ret_ty.fields]
    assert shapes == [(1, 1, h), (1, 1, h), (1, 1, 5), (1, 1, h)]


def test_an_lstm_gives_its_cell_too(tools):
    h = 3
    module = tools.lstm_module(tools.normal(4 * h, 5), tools.normal(4 * h, h), tools.normal(8 * h))
    main = ExposeInputs()(MarkSites()(module))["main"]
    assert list(map(str, main.attrs["dual.observed"])) == ["lstm0.0", "lstm0.1", "lstm0.2"]
    shapes = [tuple(int(n) for n in field.shape) for field in main.ret_ty.fields]
    assert shapes == [*[(1, 1, h)] * 3, (1, 1, 5), *[(1, 1, h)] * 2]


def test_log_progress_reports_and_changes_nothing(tools):
    module, heard = tools.dense_relu(tools.normal(6, 4), tools.normal(6)), []
    after = LogProgress("2_rewrite", heard.append)(module)
    assert heard == ["2_rewrite"]
    tvm.ir.assert_structural_equal(after, module)


def test_dump_module_writes_the_module_without_weights_and_changes_nothing(tools, tmp_path):
    module = tools.dense_relu(tools.normal(6, 4), tools.normal(6))
    after = DumpModule("1_plan", tmp_path / "made" / "here")(module)
    text = (tmp_path / "made" / "here" / "1_plan.py").read_text()
    assert "def dense0" in text and "def main" in text and "metadata" in text
    assert len(text) < 4000
    tvm.ir.assert_structural_equal(after, module)
