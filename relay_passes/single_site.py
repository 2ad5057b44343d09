"""SingleSite: ``main`` with the call of one site alone, so that a layer can be compiled and timed by itself."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst


@tvm.transform.module_pass(opt_level=0, name="SingleSite")
class SingleSite:
    """The pass; run it on marked sites that have no states, before they are rewritten.

    The new ``main`` takes what the site reads at run time, in the order of the call, and gives what the site gives:
    images are bytes where `relay_passes.pass_bytes` has left in the site's attributes that they are.
    """

    def __init__(self, name: str) -> None:
        """Keep the site `name`."""
        self._name = name

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return a module of the site's function and the new ``main``."""
        call = self._call(module)
        function = module[call.op]
        live = {
            i: relax.Var(f"x{i}", _typed(operand.ty, function, "dual.residual" if i else "dual.source"))
            for i, operand in enumerate(call.args)
            if not isinstance(operand, GenericConst)
        }
        arguments = [live.get(i, operand) for i, operand in enumerate(call.args)]
        builder = relax.BlockBuilder()
        target = builder.add_func(function, call.op.name_hint)
        attributes = {
            "num_input": len(live),
            "num_states": 0,
            "input_names": [variable.name for variable in live.values()],
            "output_names": ["y"],
        }
        with builder.function("main", list(live.values()), attrs=attributes):
            with builder.dataflow():
                output = builder.emit_output(
                    relax.Call(target, arguments, ret_ty=_typed(call.ty, function, "dual.result"))
                )
            builder.emit_func_output(output)
        return builder.get()

    def _call(self, module: IRModule) -> relax.Call:
        for block in module["main"].body.blocks:
            for binding in block.bindings:
                value = binding.value
                if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.GlobalVar):
                    continue
                attributes = module[value.op].attrs or {}
                if str(attributes.get("dual.site", "")) == self._name:
                    return value
        raise ValueError(f"no site {self._name!r} in the module")


def _typed(type_, function: relax.Function, attribute: str):
    """Return the type of an image, which is bytes if the function has an attribute."""
    return relax.TensorType(list(type_.shape), "uint8") if attribute in function.attrs else type_
