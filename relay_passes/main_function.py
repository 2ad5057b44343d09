"""What passes that change ``main`` share: to run a mutator on it, to tidy it, to add parameters and outputs."""

from __future__ import annotations

from collections.abc import Container, Sequence

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator


def extend_main(
    main: relax.Function,
    parameters: Sequence[relax.Var],
    outputs: Sequence[relax.Var],
    attributes: dict,
    dropped_outputs: Container[int] = (),
) -> relax.Function:
    """Return `main` with further parameters, further outputs and changed attributes.

    `outputs` are variables that the dataflow block gives out; they follow the present outputs, which
    become a tuple if they are not one yet. Of the present ones those numbered in `dropped_outputs` are left out.
    """
    result, bindings = main.body.body, []

    def bound(value: relax.Expr, type_) -> relax.Var:
        variable = relax.Var("result", type_)
        bindings.append(relax.VarBinding(variable, value))
        return variable

    if isinstance(result.ty, relax.TupleType):
        fields = [bound(relax.TupleGetItem(result, i), field) for i, field in enumerate(result.ty.fields)]
        fields = [field for i, field in enumerate(fields) if i not in dropped_outputs]
    else:
        fields = [result]
    fields += outputs
    type_ = relax.TupleType([value.ty for value in fields])
    output = bound(relax.Tuple(fields), type_)
    body = relax.BlockBuilder().normalize(relax.SeqExpr([*main.body.blocks, relax.BindingBlock(bindings)], output))
    return relax.Function([*main.params, *parameters], body, type_, is_pure=True).with_attrs(
        dict(main.attrs) | attributes
    )


def mutated(mutator: PyExprMutator, module: IRModule) -> IRModule:
    """Return `module` with what a mutator, made for this module, makes of ``main``, and the functions that it adds."""
    main = mutator.visit_expr(module["main"])
    mutator.builder_.update_func(module.get_global_var("main"), main)
    return mutator.builder_.get()


def tidied(module: IRModule) -> IRModule:
    """Return `module` without bindings that are another's name, and what of ``main`` nobody reads."""
    tidy = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
    return tvm.transform.Sequential(tidy)(module)
