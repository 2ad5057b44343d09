"""WriteInPlace: ``main`` takes its weights, and the tensors for its results, from the caller.

A fused step is one kernel call; without this, allocating the results and handing them over costs a
good part of what the kernel does. Weights as parameters let the caller choose their memory: huge
pages, one region. ``main`` gains one parameter per weight and then one per result, behind the
others; ``dual.in_place`` is set and ``dual.weights`` holds the weights' values.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

_CALL_TIR = tvm.ir.Op.get("relax.call_tir")


@tvm.transform.module_pass(opt_level=0, name="WriteInPlace")
class WriteInPlace:
    """The pass; run it last. It changes nothing unless ``main`` is a single kernel call."""

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with ``main`` in destination-passing form, if it can be."""
        main = module["main"]
        bindings = [binding for block in main.body.blocks for binding in block.bindings]
        if len(bindings) != 1 or not isinstance(bindings[0].value, relax.Call) or bindings[0].value.op != _CALL_TIR:
            return module
        call = bindings[0].value
        kernel, operands = call.args[0], list(call.args[1].fields)
        types = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
        if any(not isinstance(type_, relax.TensorType) for type_ in types):
            return module
        results = [relax.Var(f"result{i}", type_) for i, type_ in enumerate(types)]
        constants = [operand for operand in operands if isinstance(operand, GenericConst)]
        weights = [relax.Var(f"weight{i}", constant.ty) for i, constant in enumerate(constants)]
        passed = iter(weights)
        operands = [next(passed) if isinstance(operand, GenericConst) else operand for operand in operands]
        builder = relax.BlockBuilder(module)
        with builder.function("in_place_main", [*main.params, *weights, *results]):
            with builder.dataflow():
                places = list(range(len(operands), len(operands) + len(results)))
                out_type = types if len(types) > 1 else types[0]
                out = relax.op.call_tir_inplace(kernel, [*operands, *results], places, out_type)
                value = builder.emit_output(out)
            builder.emit_func_output(value)
        changed = builder.get()
        attributes = {"global_symbol": "main", "dual.in_place": 1, "dual.weights": [c.value for c in constants]}
        function = changed["in_place_main"].with_attrs(dict(main.attrs) | attributes)
        result = IRModule(
            {t: f for t, f in changed.functions.items() if t.name_hint not in ("main", "in_place_main")},
            attrs=module.attrs,
        )
        result["main"] = function
        return result
