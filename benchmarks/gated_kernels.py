"""``python -m benchmarks.gated_kernels``: gated convolutions of bytes and bf16 beside the dense kernels, by density.

Kernels alone, hot, bytes or bf16 in and out, on one thread. Gates are open in random places, independently for each
pixel and panel of outputs, which is the worst that can happen to lists of pixels. The time of the gated kernel is that
of all it does: spreading the few channels, deciding, listing, gathering, multiplying, writing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import tvm

from benchmarks.layers import LAYERS, SHARE, Layer
from schedules.bf16_vectors import BF16, to_bf16
from schedules.compiling import compiled
from schedules.conv2d_byte_tile import default_byte_tile
from schedules.conv2d_gated import gate_panels
from schedules.conv2d_gated_bytes import gated_conv2d_bytes
from schedules.conv2d_gated_tiles import default_gated_tiles, spread_conv
from schedules.conv2d_int8 import Affine, conv2d_int8, pack_conv2d_int8
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS, Isa, aligned_empty
from schedules.quantize import round_up
from schedules.registry import kernel
from tvm_dual.errors import SetupError
from tvm_dual.targets import checked_target

#: Shares of open tiles.
DENSITIES = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
#: Calls between two looks at the clock, and how often that is done; the least counts.
CALLS, ROUNDS = 10, 30
#: Scale of the image and the result; what the gate sees of the few channels lies between 0 and 1.
LEVELS, TOP = Affine(0.02), 255


def kernels_of(layer: Layer, precision: str, isa: Isa) -> tuple[Callable, Callable, Callable, Callable]:
    """Return ``(dense, few, gated, set_density)`` of a layer: three calls without arguments, and what opens tiles.

    `few` is the convolution to few channels in front of the gated kernel.
    """
    rng, numbers = np.random.default_rng(0), {"int8": "uint8", "bf16": BF16}[precision]
    size, stride, pad = (layer.size,) * 2, (layer.stride,) * 2, (layer.kernel // 2,) * 4
    conv = Conv2d(1, *size, layer.inputs, layer.outputs, (layer.kernel,) * 2, stride, pad, activation="relu")
    byte, k = ByteConv(conv, numbers, numbers, numbers, numbers), round_up(int(SHARE * layer.outputs), 16)
    thin = ByteConv(Conv2d(*conv.geometry[:4], k, *_rest(conv)), numbers, numbers, numbers, numbers)
    weight = _random(rng, layer.outputs, *conv.kernel, layer.inputs) / np.sqrt(conv.taps).astype("float32")
    bias, result, spread = _random(rng, layer.outputs), LEVELS if precision == "int8" else None, spread_conv(byte, k)
    # One of the few channels for each panel, which it opens alone.
    rows = np.zeros((layer.outputs, 1, 1, k), "float32")
    for number, panel in enumerate(gate_panels(isa, conv)):
        rows[panel, 0, 0, number % k] = 1 / TOP
    seen = rng.integers(0, TOP + 1, spread.conv.input_size)
    x = rng.integers(0, 256, conv.input_size).astype("uint8")
    as_numbers = (lambda v: v.astype("uint8")) if precision == "int8" else (lambda v: to_bf16(v.astype("float32")))
    tiles, gate_tiles = (default_byte_tile(isa, byte), default_byte_tile(isa, thin)), default_gated_tiles(isa, byte, k)
    packed = [
        pack_conv2d_int8(isa, byte, tiles[0], weight, bias, LEVELS, result),
        pack_conv2d_int8(isa, thin, tiles[1], weight[:k], bias[:k], LEVELS, result),
        pack_conv2d_int8(isa, spread, gate_tiles.spread, rows, np.zeros_like(bias), Affine(1.0), result),
        pack_conv2d_int8(isa, byte, gate_tiles.open, weight, bias, LEVELS, result),
    ]
    dense_operands, few_operands, rows, big = ([_tensor(part) for part in each] for each in packed)
    dense = _compiled(isa, kernel(conv2d_int8, isa, byte, tiles[0], 1))
    few = _compiled(isa, kernel(conv2d_int8, isa, thin, tiles[1], 1))
    gated = _compiled(isa, kernel(gated_conv2d_bytes, isa, byte, k, gate_tiles, 1))
    images, nothing = [_tensor(as_numbers(image)) for image in (x, seen)], _tensor(np.zeros(1, numbers))
    y, z = (_tensor(np.zeros(each.output_size, numbers)) for each in (conv, thin.conv))
    limits, count = aligned_empty((3, layer.outputs), "float32"), _tensor(np.zeros(1, "int32"))
    bounds = tvm.runtime.from_dlpack(limits)

    def set_density(density: float) -> float:
        """Open a share of the tiles, and return it as it came out."""
        # A steep step at the value that the wanted share of the few channels' values exceeds.
        bound = np.quantile(seen, 1 - density) / TOP if 0 < density < 1 else 0.0
        limits[...] = np.array([[1e4], [-1e4 * bound], [2.0]]) if density < 1 else np.array([[0.0], [1.0], [2.0]])
        limits[2] *= density > 0
        run_gated()
        return float(count.numpy()[0]) / (len(gate_panels(isa, conv)) * conv.out_height * conv.out_width)

    def run_gated() -> None:
        gated(*images, *rows, bounds, *big, nothing, y, count)

    return (
        lambda: dense(images[0], *dense_operands, nothing, y),
        lambda: few(images[0], *few_operands, nothing, z),
        run_gated,
        set_density,
    )


def _rest(conv: Conv2d) -> tuple:
    return conv.kernel, conv.strides, conv.padding


def _random(rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype("float32")


def _tensor(values: np.ndarray):
    memory = aligned_empty(values.shape, values.dtype)
    memory[...] = values
    return tvm.runtime.from_dlpack(memory)


def _compiled(isa: Isa, function) -> Callable:
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return compiled(module, isa)["main"]


def least(call: Callable) -> float:
    """Return the least microseconds of a call."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - start) / CALLS)
    return 1e6 * min(found)


def main() -> None:
    """Print one line of a table for each layer: dense, few channels, then the gated kernel by share of open tiles."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gated_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", default=["int8", "bf16"], choices=["int8", "bf16"])
    parser.add_argument("--layers", nargs="+", type=int, default=range(len(LAYERS)), help="their numbers, from 0 on")
    parser.add_argument("--target", default="native", help="a level that this CPU runs")
    arguments = parser.parse_args()
    isa = ISAS[checked_target(arguments.target, 1)]
    if "bf16" in arguments.precision and not isa.amx:
        raise SetupError(f"gated kernels: {isa.name} has no bf16; accepted: --precision int8")
    every = {
        (layer, precision): kernels_of(layer, precision, isa)
        for precision in arguments.precision
        for layer in (LAYERS[number] for number in arguments.layers)
    }
    print("| layer | precision | dense, us | few channels | " + " | ".join(f"{d:.2f} open" for d in DENSITIES) + " |")
    for (layer, precision), (dense, few, gated, set_density) in every.items():
        cells = [f"{least(dense):.1f}", f"{least(few):.1f}"]
        for density in DENSITIES:
            found = set_density(density)
            cells.append(f"{least(gated):.1f} ({found:.2f})")
        print(f"| {layer} | {precision} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
