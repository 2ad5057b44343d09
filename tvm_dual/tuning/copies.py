"""A kernel over several copies of its operands, one after another, in a loop of its own.

A kernel that is timed on the same operands again and again finds them in the inner caches, where a model of many
megabytes never has them. Copies that together are larger than these caches are met as they are in a model; and
with the loop inside the kernel, what a call costs does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import tirx

from relay_passes.one_memory import replaced
from relay_passes.over_time import allocated, block, statements

#: Each copy of an operand starts at a multiple of these bytes, as operands of a model do.
_ALIGNMENT = 64


def over_copies(kernel: tirx.PrimFunc, copies: int, vectors: int) -> tirx.PrimFunc:
    """Return `kernel` repeated over `copies` of every parameter, which lie one behind the other.

    Parameters
    ----------
    kernel : PrimFunc
    copies : int
    vectors : int
        Value of an open extent.

    Returns
    -------
    PrimFunc
        Its parameters are the kernel's, flat: ``(copies * stride,)`` each, strides as `stacked` lays copies out.
    """
    copy, known, wholes, views = tirx.Var("copy", "int64"), {}, [], {}
    for parameter in kernel.params:
        for extent in parameter.shape:
            if isinstance(extent, tirx.Var):
                known[extent] = tirx.IntImm("int64", vectors)
    for parameter in kernel.params:
        dtype, shape = str(parameter.dtype), [int(known.get(extent, extent)) for extent in parameter.shape]
        stride = _stride(shape, dtype)
        whole = tirx.decl_buffer((copies * stride,), dtype, parameter.name)
        wholes.append(whole)
        views[parameter] = tirx.decl_buffer(
            shape, dtype, parameter.name, data=whole.data, elem_offset=copy * tirx.IntImm("int64", stride)
        )
    body = [tirx.DeclBuffer(view, data=whole.data) for view, whole in zip(views.values(), wholes, strict=True)]
    body += [replaced(statement, views | known) for statement in statements(kernel)]
    loop = tirx.For(copy, 0, copies, tirx.ForKind.SERIAL, block("copy", body, allocated(kernel)))
    repeated = tirx.PrimFunc(wholes, block("root", [loop]), kernel.ret_type, kernel.attrs)
    return repeated.with_attr("global_symbol", "main")


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return copies of one operand, of equal shape and dtype, as `over_copies` reads them."""
    dtype = arrays[0].dtype
    flat = np.zeros((len(arrays), _stride(arrays[0].shape, str(dtype))), dtype)
    for row, array in zip(flat, arrays, strict=True):
        row[: array.size] = array.reshape(-1)
    return flat.reshape(-1)


def unstacked(flat: np.ndarray, copies: int, shape: Sequence[int]) -> np.ndarray:
    """Return the copies of an operand, ``(copies, *shape)``."""
    return flat.reshape(copies, -1)[:, : math.prod(shape)].reshape(copies, *shape)


def _stride(shape: Sequence[int], dtype: str) -> int:
    """Return the elements from one copy to the next."""
    per_line = _ALIGNMENT // np.dtype(dtype).itemsize
    return -(-math.prod(shape) // per_line) * per_line
