"""Small models as modules, and what their rewritten steps consist of."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.mark_sites import MarkSites
from schedules import cpu
from schedules.compiling import compiled
from schedules.recurrent_reference import gru_reference, lstm_reference


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return small random numbers, float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.5).astype("float32")


def bound(module: IRModule, **constants: np.ndarray) -> IRModule:
    """Return `module` with parameters of its ``main`` as constants."""
    return relax.transform.BindParams("main", constants)(module)


def step_calls(module: IRModule, name: str) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Return the kernel calls of a site's step, in order: kernel name and the operands' shapes."""
    (block,) = module[f"{name}_step"].body.blocks
    calls = []
    for binding in block.bindings:
        value = binding.value
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
            shapes = [tuple(int(n) for n in operand.ty.shape) for operand in value.args[1].fields]
            # A kernel that serves two matrices is called once more under a number of its own.
            kernel = value.args[0].name_hint.removeprefix(f"{name}_").rstrip("0123456789")
            calls.append((kernel.rstrip("_"), shapes))
    return calls


def run_module(module: IRModule, isa: cpu.Isa, *arrays: np.ndarray) -> list[np.ndarray]:
    """Compile a rewritten module and return what its ``main`` gives, as one flat list."""
    passes = [relax.transform.LegalizeOps(), relax.transform.FuseTIR(), relax.transform.DeadCodeElimination(["main"])]
    module = tvm.transform.Sequential(passes)(module)
    executable = compiled(module, isa)
    tensors = []
    for array in arrays:
        memory = cpu.aligned_empty(array.shape, "float32")
        memory[...] = array
        tensors.append(tvm.runtime.from_dlpack(memory))
    found = []

    def collect(value) -> None:
        if isinstance(value, tvm.runtime.Tensor):
            found.append(value.numpy())
        else:
            for part in value:
                collect(part)

    collect(relax.VirtualMachine(executable, tvm.cpu())["main"](*tensors))
    return found


def built(shape, *steps, dtype: str = "float32") -> IRModule:
    """Return a ``main`` of one input; each step makes the next value of the one before it."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(list(shape), dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for step in steps:
                y = builder.emit(step(y))
            result = builder.emit_output(y)
        builder.emit_func_output(result)
    return builder.get()


def operators(module: IRModule) -> list[str]:
    """Return the operators that ``main`` calls, in order, without what says whose they are."""
    values = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    return [value.op.name.split(".")[-1] for value in values if isinstance(value, relax.Call)]


def computed(module: IRModule, x: np.ndarray) -> np.ndarray:
    """Return what ``main`` gives, compiled by TVM alone."""
    return relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()


def dense_relu(weight: np.ndarray, bias: np.ndarray) -> IRModule:
    """Return a dense layer of 4 inputs and 6 outputs with a ReLU, marked as ``dense0``."""

    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32"), b: R.Tensor((6,), "float32")
        ) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                y = R.nn.relu(R.add(R.matmul(x, w), b))
                R.output(y)
            return y

    return MarkSites()(bound(Model, w=weight.T.copy(), b=bias))


def gru_module(
    weight: np.ndarray, recurrence: np.ndarray, bias: np.ndarray, late_reset: int, layers: int = 1, relu: bool = False
) -> IRModule:
    """Return GRU layers as the importer gives them: one shared shape, ``main(x, h0, ...) -> (y, h0', ...)``."""
    reference = gru_reference(weight.shape[1], recurrence.shape[1], late_reset)
    attributes = {"Composite": "dual.gru", "linear_before_reset": late_reset}
    return _recurrent_module(reference, attributes, "h", (weight, recurrence, bias), layers, relu)


def lstm_module(
    weight: np.ndarray, recurrence: np.ndarray, bias: np.ndarray, layers: int = 1, relu: bool = False
) -> IRModule:
    """Return LSTM layers likewise: ``main(x, h0, c0, ...) -> (y, h0', c0', ...)``."""
    reference = lstm_reference(weight.shape[1], recurrence.shape[1])
    return _recurrent_module(reference, {"Composite": "dual.lstm"}, "hc", (weight, recurrence, bias), layers, relu)


def _recurrent_module(reference, attributes: dict, states: str, weights: tuple, layers: int, relu: bool) -> IRModule:
    hidden, k = weights[1].shape[1], weights[0].shape[1]
    builder = relax.BlockBuilder()
    types = [(1, 1, k), *[(1, 1, hidden)] * len(states), *(array.shape for array in weights)]
    state_type = relax.TensorType([1, 1, hidden], "float32")
    outputs = [relax.TensorType([1, 1, 1, hidden], "float32"), *[state_type] * len(states)]
    kernel = builder.add_func(reference, "reference")
    parameters = [relax.Var(f"p{i}", relax.TensorType(list(t), "float32")) for i, t in enumerate(types)]
    layer = relax.BlockBuilder()
    with layer.function("layer", parameters, private=True):
        with layer.dataflow():
            result = layer.emit_output(relax.call_tir(kernel, parameters, outputs))
        layer.emit_func_output(result)
    function = builder.add_func(layer.get()["layer"].with_attrs(attributes | {"hidden_size": hidden}), "layer")
    x = relax.Var("x", relax.TensorType([1, 1, k], "float32"))
    starts = [[relax.Var(f"{state}{i}", state_type) for state in states] for i in range(layers)]
    constants = [relax.const(array) for array in weights]
    with builder.function("main", [x, *(state for start in starts for state in start)]):
        with builder.dataflow():
            value, finals = builder.emit(relax.op.nn.relu(x)) if relu else x, []
            for start in starts:
                result = builder.emit(relax.Call(function, [value, *start, *constants]))
                value = builder.emit(relax.op.squeeze(builder.emit(relax.TupleGetItem(result, 0)), [1]))
                finals += [builder.emit(relax.TupleGetItem(result, 1 + i)) for i in range(len(states))]
            output = builder.emit_output(relax.Tuple([value, *finals]))
        builder.emit_func_output(output)
    return builder.get()


def gru_step(x, h, weight, recurrence, bias, late_reset: int) -> np.ndarray:
    """Return a GRU's next state, by NumPy."""
    n = recurrence.shape[1]
    given, hidden = weight @ x + bias[: 3 * n], recurrence @ h + bias[3 * n :]
    z, r = (1 / (1 + np.exp(-(given[i : i + n] + hidden[i : i + n]))) for i in (0, n))
    if late_reset:
        candidate = np.tanh(given[2 * n :] + r * hidden[2 * n :])
    else:
        candidate = np.tanh(given[2 * n :] + recurrence[2 * n :] @ (r * h) + bias[5 * n :])
    return (1 - z) * candidate + z * h


def lstm_step(x, h, c, weight, recurrence, bias) -> tuple[np.ndarray, np.ndarray]:
    """Return an LSTM's next states h and c, by NumPy."""
    sums = weight @ x + recurrence @ h + bias.reshape(2, -1).sum(axis=0)
    i, o, f = (1 / (1 + np.exp(-gate)) for gate in np.split(sums, 4)[:3])
    c = f * c + i * np.tanh(np.split(sums, 4)[3])
    return o * np.tanh(c), c


class Tools:
    """The functions of this file, for tests: ``importlib`` mode has no way to import it."""

    normal = staticmethod(normal)
    bound = staticmethod(bound)
    step_calls = staticmethod(step_calls)
    run = staticmethod(run_module)
    dense_relu = staticmethod(dense_relu)
    gru_module = staticmethod(gru_module)
    gru_step = staticmethod(gru_step)
    lstm_module = staticmethod(lstm_module)
    lstm_step = staticmethod(lstm_step)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    """Return what makes and runs small modules."""
    return Tools


@pytest.fixture(scope="session")
def native() -> cpu.Isa:
    """Return the level of this machine."""
    level = cpu.native_isa()
    if level is None:
        pytest.skip("this CPU lacks AVX2")
    return level


@pytest.fixture(scope="session")
def added_chain():
    """Two convolutions in a row, of which the second adds what the first read, and one that reads the result."""

    @I.ir_module
    class Model:
        @R.function
        def main(
            x: R.Tensor((1, 4, 4, 8), "float32"),
            w0: R.Tensor((8, 1, 1, 8), "float32"),
            w1: R.Tensor((8, 1, 1, 8), "float32"),
            w2: R.Tensor((8, 1, 1, 8), "float32"),
        ) -> R.Tensor((1, 4, 4, 8), "float32"):
            with R.dataflow():
                a = R.nn.relu(R.nn.conv2d(x, w0, data_layout="NHWC", kernel_layout="OHWI"))
                b = R.nn.relu(R.add(R.nn.conv2d(a, w1, data_layout="NHWC", kernel_layout="OHWI"), a))
                c = R.nn.relu(R.nn.conv2d(b, w2, data_layout="NHWC", kernel_layout="OHWI"))
                R.output(c)
            return c

    return MarkSites()(bound(Model, **{f"w{i}": np.asarray(normal(8, 1, 1, 8, seed=i)) for i in range(3)}))
