"""What follows a product: nonlinearities of scalar or vector expressions, and kernels over one vector."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.intrinsics import sigmoid, tanh

#: By name, for a scalar or vector expression.
NONLINEARITIES = {
    "relu": lambda v: T.max(v, T.float32(0)),
    "relu6": lambda v: T.min(T.max(v, T.float32(0)), T.float32(6)),
    "sigmoid": sigmoid,
    "tanh": tanh,
    "silu": lambda v: v * sigmoid(v),
    "hard_swish": lambda v: v * T.min(T.max(v + T.float32(3), T.float32(0)), T.float32(6)) * T.float32(1 / 6),
    None: lambda v: v,
}


def activation(n: int, kind: str | None):
    """Return the kernel ``(y: f32[n]) -> f32[n]`` of a nonlinearity: relu, sigmoid, tanh or None."""
    function = NONLINEARITIES[kind]

    @T.prim_func(s_tir=True, private=True)
    def epilogue(y: T.Buffer((n,), "float32"), result: T.Buffer((n,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("epilogue"):
            T.reads(y[0:n])
            T.writes(result[0:n])
            for i in T.serial(n):
                result[i] = function(y[i])

    return epilogue


def add(n: int):
    """Return the kernel ``(a: f32[n], b: f32[n]) -> a + b``."""

    @T.prim_func(s_tir=True, private=True)
    def add_vectors(a: T.Buffer((n,), "float32"), b: T.Buffer((n,), "float32"), result: T.Buffer((n,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        with T.sblock("add"):
            T.reads(a[0:n], b[0:n])
            T.writes(result[0:n])
            for i in T.serial(n):
                result[i] = a[i] + b[i]

    return add_vectors
