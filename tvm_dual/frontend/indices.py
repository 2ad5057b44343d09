"""Selections by index: kernels check nothing, and count negative indices from the wrong end.

TVM's PyTorch importer makes ``y[:, -1]`` a selection of row -1, which reads other memory.
"""

from __future__ import annotations

from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

#: Operators through which an index keeps its value.
_KEEPING = {f"relax.{name}" for name in ("astype", "reshape", "squeeze", "expand_dims", "permute_dims")}


def index_limits(main: relax.Function) -> dict[str, int]:
    """Return by input the rows of the smallest table that it selects from."""
    origin = {p: str(name) for name, p in zip(main.attrs["input_names"], main.params, strict=True)}
    limits: dict[str, int] = {}
    for block in main.body.blocks:
        for binding in block.bindings:
            value, name = binding.value, _operator(binding.value)
            source = value if isinstance(value, relax.Var) else None
            if name in _KEEPING:
                source = value.args[0]
            elif name == "relax.where":  # how ONNX's negative indices come to count from the end
                source = value.args[2]
            if source in origin:
                origin[binding.var] = origin[source]
            if name == "relax.take" and isinstance(value.args[0], GenericConst) and value.args[1] in origin:
                given = origin[value.args[1]]
                rows = int(value.args[0].ty.shape[int(value.attrs.axis)])
                limits[given] = min(rows, limits.get(given, rows))
    return limits


def with_safe_indices(main: relax.Function) -> relax.Function:
    """Return `main` with selections that stay within their tables, and constants below zero from the end."""
    return _SafeIndices().visit_expr(main)


def _operator(value: relax.Expr) -> str:
    return getattr(getattr(value, "op", None), "name", "")


@mutator
class _SafeIndices(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if _operator(call) == "relax.take" and call.attrs.mode == "fast":
            axis = None if call.attrs.axis is None else int(call.attrs.axis)
            mode = "wrap" if isinstance(call.args[1], GenericConst) else "clip"
            return relax.op.take(call.args[0], call.args[1], axis, mode=mode)
        return call
