"""The operands of a chain of convolutions: all weights in one, all floats in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from schedules.byte_chain import ByteChain
from schedules.conv2d_int8 import Affine, pack_conv2d_int8
from schedules.conv2d_lines import STEP
from schedules.cpu import Isa


def pack_chain(
    isa: Isa,
    chain: ByteChain,
    weights: list[np.ndarray],
    biases: list[np.ndarray],
    affines: list[Affine],
    result: Affine | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the operands ``(weight: i8[rows, 16, 64], floats: f32)``.

    Parameters
    ----------
    isa : Isa
    chain : ByteChain
    weights, biases : list of ndarray, float32
        Of each convolution, as `schedules.conv2d_int8.pack_conv2d_int8` takes them.
    affines : list of Affine
        Of what each one reads, if it is bytes.
    result : Affine, optional
        Of the result, if it is bytes.
    """
    rows, floats = [], []
    targets = [*affines[1:], result]
    for byte, tile, weight, bias, source, target in zip(
        chain.convs, chain.tiles(isa), weights, biases, affines, targets, strict=True
    ):
        packed, *parts = pack_conv2d_int8(isa, byte, tile, weight, bias, source, target)
        rows.append(packed.reshape(-1, 16, STEP))
        floats += parts
    return np.concatenate(rows), np.concatenate(floats)


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a merged operand that is indexed like an operand of its own."""

    whole: tirx.Buffer
    start: int
    shape: tuple[int, ...] = ()

    def __getitem__(self, index):
        if not self.shape:
            if isinstance(index, tirx.Ramp):
                return self.whole[T.ramp(self.start + index.base, index.stride, index.lanes)]
            return self.whole[self.start + index]
        panel, step, vector, row, column = index
        _, steps, vectors = self.shape
        return self.whole[self.start + (panel * steps + step) * vectors + vector, row, column]
