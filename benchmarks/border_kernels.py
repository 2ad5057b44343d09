"""``python -m benchmarks.border_kernels``: what lies between convolutions, beside TVM's own loops.

Kernels alone, hot, float32, on one thread, least microseconds. TVM's are what its default pipeline makes of the
operator for the same target.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from benchmarks.gated_kernels import least
from relay_passes.rewrite_depthwise import RewriteDepthwise
from relay_passes.rewrite_transposes import RewriteTransposes
from relay_passes.schedule_loops import ScheduleLoops
from schedules.compiling import compiled
from schedules.cpu import ISAS, Isa, aligned_empty
from tvm_dual.targets import checked_target

#: Pixels and channels of images.
IMAGES = ((56, 64), (14, 256), (7, 512), (28, 512), (14, 1024))
#: Pixels, channels, kernel and stride of depthwise convolutions.
DEPTHWISE = ((112, 32, 3, 1), (56, 128, 3, 2), (28, 256, 3, 1), (14, 512, 3, 1), (14, 480, 5, 1))


def transposing(shape: tuple[int, ...], axes: tuple[int, ...]) -> tvm.IRModule:
    """Return a module that transposes an image."""
    return _module(shape, lambda x: relax.op.permute_dims(x, axes))


def convolving(size: int, channels: int, kernel: int, stride: int) -> tvm.IRModule:
    """Return a module of a depthwise convolution, channels last, and a ReLU."""
    weight = np.random.default_rng(0).standard_normal((channels, kernel, kernel, 1)).astype("float32")
    windows = {"strides": [stride] * 2, "padding": [kernel // 2] * 4, "groups": channels}
    layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
    return _module(
        (1, size, size, channels),
        lambda x: relax.op.nn.relu(relax.op.nn.conv2d(x, relax.const(weight), **windows, **layouts)),
    )


def swishing(shape: tuple[int, ...]) -> tvm.IRModule:
    """Return a module that scales an image, and computes the hard swish of it: seven operators."""

    def emit(x: relax.Var) -> relax.Expr:
        y = relax.op.add(relax.op.multiply(x, relax.const(1.5)), relax.const(0.5))
        open_share = relax.op.minimum(relax.op.nn.relu(relax.op.add(y, relax.const(3.0))), relax.const(6.0))
        return relax.op.divide(relax.op.multiply(y, open_share), relax.const(6.0))

    return _module(shape, emit)


def averaging(shape: tuple[int, ...]) -> tvm.IRModule:
    """Return a module of the mean of each channel, channels last."""
    return _module(shape, lambda x: relax.op.mean(x, [1, 2], keepdims=True))


def _module(shape: tuple[int, ...], emit: Callable) -> tvm.IRModule:
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(list(shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(builder.normalize(emit(x))))
        builder.emit_func_output(output)
    return builder.get()


def _as_it_is(module: tvm.IRModule) -> tvm.IRModule:
    return module


def microseconds(
    module: tvm.IRModule, isa: Isa, rewrite: Callable = _as_it_is, schedule: Callable = _as_it_is
) -> float:
    """Return the least time of the kernel that `rewrite`, then TVM, and then `schedule` make of a module."""
    fuse = relax.transform
    stages = [fuse.LegalizeOps(), fuse.AnnotateTIROpPattern(), fuse.FoldConstant(), fuse.FuseOps(), fuse.FuseTIR()]
    tidy = [fuse.CanonicalizeBindings(), fuse.RemoveRedundantReshape()]
    module = schedule(tvm.transform.Sequential([*tidy, *stages])(rewrite(module)))
    calls = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    (call,) = filter(_is_kernel, calls)
    kernel = module[call.args[0]]
    operands = [arg.value.numpy() if isinstance(arg, tvm.ir.GenericConst) else None for arg in call.args[1].fields]
    rng, tensors = np.random.default_rng(1), []
    for parameter, value in zip(kernel.params, [*operands, None], strict=True):
        memory = aligned_empty([int(extent) for extent in parameter.shape], str(parameter.dtype))
        memory[...] = rng.standard_normal(memory.shape) if value is None else value
        tensors.append(tvm.runtime.from_dlpack(memory))
    run = compiled(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), isa)["main"]
    return least(lambda: run(*tensors))


def _is_kernel(call: relax.Expr) -> bool:
    """Whether a binding calls what is timed, and no reshape, which moves nothing."""
    if not isinstance(call, relax.Call) or not call.args or not isinstance(call.args[0], tvm.ir.GlobalVar):
        return False
    return any(word in call.args[0].name_hint for word in ("transpose", "conv2d", "depthwise", "multiply", "mean"))


def main() -> None:
    """Print one line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.border_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="native", help="a level that this CPU runs")
    isa = ISAS[checked_target(parser.parse_args().target, 1)]
    cases = [
        (f"{size} x {size}, {channels}, {name}", transposing(shape, axes), {"rewrite": RewriteTransposes(isa, 1)})
        for size, channels in IMAGES
        for name, shape, axes in (
            ("NCHW to NHWC", (1, channels, size, size), (0, 2, 3, 1)),
            ("NHWC to NCHW", (1, size, size, channels), (0, 3, 1, 2)),
        )
    ]
    cases += [
        (f"{size} x {size}, {channels}, depthwise {k} x {k} / {stride}", convolving(size, channels, k, stride),
         {"rewrite": RewriteDepthwise(isa, 1)})
        for size, channels, k, stride in DEPTHWISE
    ]  # fmt: skip
    for size, channels in IMAGES:
        for name, made in (("hard swish", swishing), ("mean of channels", averaging)):
            module = made((1, size, size, channels))
            cases.append((f"{size} x {size}, {channels}, {name}", module, {"schedule": ScheduleLoops(1)}))
    print("| | TVM's loop, us | ours, us | |\n|---|---|---|---|")
    for name, module, ours in cases:
        before, after = microseconds(module, isa), microseconds(module, isa, **ours)
        print(f"| {name} | {before:.1f} | {after:.1f} | {before / after:.2f} |", flush=True)


if __name__ == "__main__":
    main()
