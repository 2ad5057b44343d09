"""Compiling the kernels of a module each by itself, and each once: for libraries that are judged, not timed.

Models that differ in a layer or two share all other kernels; of 24 convolutions, linking and compiling them as one step
took 10 of the 15 seconds that it took to judge which of them can be on bytes.
"""

from __future__ import annotations

import itertools

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from schedules.compiling import compiled
from schedules.cpu import Isa

_CALL_TIR, _CALL_PACKED = (tvm.ir.Op.get(f"relax.{name}") for name in ("call_tir", "call_dps_packed"))


class CompiledApart:
    """Compiles modules, and remembers their kernels: some ten kilobytes of code each."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[tuple, list[tuple[tirx.PrimFunc, str]]] = {}
        self._numbers = itertools.count()

    def __call__(self, module: tvm.IRModule, isa: Isa, threads: int = 1):
        """Return what `compiled` does of a module with a ``main``, to be run in this process alone."""
        kernels = {target: f for target, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
        # Those of open extents are told them beside their operands, and stay.
        names = {target: self._name(kernel, isa, threads) for target, kernel in kernels.items() if not _is_open(kernel)}
        caller = _Caller(module, names)
        for target, function in module.functions.items():
            if isinstance(function, relax.Function):
                caller.builder_.update_func(target, caller.visit_expr(function))
        rest = {target: f for target, f in caller.builder_.get().functions.items() if target not in names}
        return compiled(tvm.IRModule(rest, attrs=module.attrs), isa, threads)

    def _name(self, kernel: tirx.PrimFunc, isa: Isa, threads: int) -> str:
        """Return the name under which a kernel is found, and compile it if it is a new one."""
        kernel = kernel.with_attr("global_symbol", "kernel")
        alike = self._known.setdefault((tvm_ffi.structural_hash(kernel), isa.name, threads), [])
        for known, name in alike:
            if tvm_ffi.structural_equal(known, kernel):
                return name
        name = f"tvm_dual.apart.{id(self)}.{next(self._numbers)}"
        code = compiled(tvm.IRModule({"kernel": kernel}), isa, threads)
        tvm_ffi.register_global_func(name, code["kernel"])
        alike.append((kernel, name))
        return name


@mutator
class _Caller(PyExprMutator):
    """Calls kernels by the names under which they are found."""

    def __init__(self, module: tvm.IRModule, names: dict[tvm.ir.GlobalVar, str]) -> None:
        super().__init__(module)
        self._names = names

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != _CALL_TIR or call.args[0] not in self._names:
            return call
        kernel = relax.ExternFunc(self._names[call.args[0]])
        return relax.Call(_CALL_PACKED, [kernel, call.args[1]], ty_args=call.ty_args)


def _is_open(kernel: tirx.PrimFunc) -> bool:
    extents = [extent for parameter in kernel.params for extent in getattr(parameter, "shape", [None])]
    return not all(isinstance(extent, tirx.IntImm) for extent in extents)


#: What this process has compiled.
compiled_apart = CompiledApart()
