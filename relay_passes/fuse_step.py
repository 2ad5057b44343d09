"""FuseStep: all kernels of ``main`` become one.

A streamed model calls a dozen kernels of microseconds each; the virtual machine's instructions
between them, most of them allocations, take longer than the smallest of them. Where every binding
of ``main`` is a kernel call of known shapes, the whole step becomes one primitive function, which
``FuseTIR`` then joins into one kernel.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.over_time import SEQUENCE

_CALL_TIR = tvm.ir.Op.get("relax.call_tir")


@tvm.transform.module_pass(opt_level=0, name="FuseStep")
class FuseStep:
    """The pass; run it on legalized modules, and ``FuseTIR`` after it."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with ``main`` calling one primitive function, if it can."""
        main = module["main"]
        if not _is_fusible(module, main):
            return module
        builder = relax.BlockBuilder(module)
        lifted = _LiftConstants()
        main = lifted.visit_expr(main)
        parameters = [*main.params, *lifted.parameters]
        step = relax.Function(parameters, main.body, main.ret_ty, is_pure=True)
        step = relax.utils.copy_with_new_vars(step).with_attr("Primitive", True).without_attr("global_symbol")
        target = builder.add_func(step, "step")
        outer = relax.utils.copy_with_new_vars(main)
        with builder.function("fused_main", list(outer.params)):
            with builder.dataflow():
                result = builder.emit_output(relax.Call(target, [*outer.params, *lifted.constants]))
            builder.emit_func_output(result)
        fused = builder.get()
        name = fused.get_global_var("fused_main")
        function = fused[name].with_attrs(dict(main.attrs) | {"global_symbol": "main"})
        result = IRModule({t: f for t, f in fused.functions.items() if t.name_hint != "fused_main"}, attrs=module.attrs)
        result.update_func(module.get_global_var("main"), function)
        return result


def _is_fusible(module: IRModule, main: relax.Function) -> bool:
    computed = set()
    for block in main.body.blocks:
        if not isinstance(block, relax.DataflowBlock):
            return False
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call):
                if value.op != _CALL_TIR or not _static(value.ty):
                    return False
                # What takes many steps gains nothing from sparing a dispatch.
                if SEQUENCE in (module[value.args[0]].attrs or {}):
                    return False
            elif isinstance(value, relax.Tuple):
                # A result that is an argument or a constant has no kernel that writes it.
                if any(field not in computed for field in value.fields):
                    return False
                # One that is asked for twice would be written once.
                if len(set(value.fields)) < len(value.fields):
                    return False
            elif not isinstance(value, (relax.TupleGetItem, relax.Var)):
                return False
            computed.add(binding.var)
    return True


def _static(type_) -> bool:
    fields = type_.fields if isinstance(type_, relax.TupleType) else [type_]
    return all(isinstance(extent, tvm.tirx.IntImm) for field in fields for extent in field.shape)


@mutator
class _LiftConstants(PyExprMutator):
    """Replaces constants by parameters; one parameter for each constant."""

    def __init__(self) -> None:
        super().__init__(None)
        self.constants: list[GenericConst] = []
        self.parameters: list[relax.Var] = []

    def visit_generic_const_(self, constant: GenericConst) -> relax.Expr:
        if not isinstance(constant.ty, relax.TensorType):
            return constant
        for known, parameter in zip(self.constants, self.parameters, strict=True):
            if known.same_as(constant):
                return parameter
        self.constants.append(constant)
        self.parameters.append(relax.Var(f"constant{len(self.constants)}", constant.ty))
        return self.parameters[-1]
