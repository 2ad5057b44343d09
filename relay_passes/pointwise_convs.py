"""PointwiseConvs: a matrix product of many vectors becomes a convolution of one pixel.

Vectors are pixels, their values channels (Lin et al., "Network in network", 2013). So dense layers of sequences, of
attention and behind it are sites with all that convolutions have: tiles of many vectors, bytes, gates, little modules.
"""

from __future__ import annotations

from math import prod

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import mutator

from relay_passes.inner_values import InnerValues, moved_inside

#: Most pixels of a row: tiles have up to 14, and it is rows that threads share and that stay in the caches.
_MOST_COLUMNS = 24


@tvm.transform.module_pass(opt_level=0, name="PointwiseConvs")
class PointwiseConvs:
    """The pass; run it behind `ChannelsLast`, where weights are constants. It looks at ``main`` alone.

    Products of one vector stay as they are, and so do those of an open number of them.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with convolutions in place of products of many vectors."""
        return moved_inside(_Flattener(module), module)


@mutator
class _Flattener(InnerValues):
    """Inner values are images, channels last; their geometry is the shape outside."""

    def started(self, call: relax.Call) -> relax.Expr | None:
        if not _is_product_of_many(call):
            return None
        x, weight = call.args
        known = self.inner(x)
        image = known[0] if known else self._image(x)
        kernel = weight.value.numpy().T[:, None, None, :]
        product = relax.op.nn.conv2d(image, relax.const(kernel), data_layout="NHWC", kernel_layout="OHWI")
        return self.arrange(product, _extents(call))

    def arranged(self, inner: relax.Var, geometry: tuple[int, ...]) -> relax.Expr:
        return relax.op.reshape(inner, geometry)

    def operand(self, value, call: relax.Call, geometry: tuple[int, ...]) -> relax.Expr | None:
        shape = _extents(value)
        if shape == geometry:
            return self._image(value)
        if not isinstance(value, GenericConst) or prod(shape) not in (1, geometry[-1]) or prod(shape[:-1]) != 1:
            return None
        array = value.value.numpy()
        return relax.const(array.reshape(() if array.size == 1 else (1, 1, 1, -1)))

    def _image(self, value: relax.Expr) -> relax.Var:
        return self.builder_.emit(relax.op.reshape(value, image_shape(_extents(value))))


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return a tensor's shape as that of one image whose channels are its last axis."""
    pixels = prod(shape[:-1])
    columns = max(count for count in range(1, _MOST_COLUMNS + 1) if pixels % count == 0)
    return 1, pixels // columns, columns, shape[-1]


def _is_product_of_many(call: relax.Call) -> bool:
    if getattr(call.op, "name", "") != "relax.matmul":
        return False
    x, weight = call.args
    floats = all(str(operand.ty.dtype.dtype) == "float32" for operand in call.args)
    if not floats or not isinstance(weight, GenericConst) or len(weight.ty.shape) != 2:
        return False
    shape = _extents(x)
    return shape is not None and len(shape) > 1 and prod(shape[:-1]) > 1


def _extents(value: relax.Expr) -> tuple[int, ...] | None:
    """Return the extents of a tensor, None if one is open."""
    shape = value.ty.shape
    if shape is None or not all(isinstance(extent, tvm.tirx.IntImm) for extent in shape):
        return None
    return tuple(map(int, shape))
