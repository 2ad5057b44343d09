"""JoinBytes: convolutions of bytes or of bf16 with large images between them become one chain.

Each of these images would come and go through L3 or memory. As a chain the convolutions are computed band by band
(`schedules.conv2d_chain`), and what is between them stays in L2.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.conv2d_bytes_stage import ByteImages, byte_bias, read_images
from relay_passes.conv2d_site import Conv2dSite, read_conv2d
from relay_passes.main_function import mutated
from relay_passes.mark_sites import layer_activation
from relay_passes.pass_bytes import Images
from relay_passes.site_plan import read_form
from relay_passes.site_rewriter import StepCall
from relay_passes.step import StepBuilder
from schedules.byte_chain import ByteChain, can_chain, can_pool, chain_room
from schedules.chain_operands import pack_chain
from schedules.conv2d_chain import conv2d_chain
from schedules.conv2d_lines import SIZES
from schedules.registry import kernel

CHAIN = "dual.conv2d_chain"
#: Share of the second level that an image may take if it is to stay there beside what else its reader needs.
LARGE = 5 / 16


@tvm.transform.module_pass(opt_level=0, name="JoinBytes")
class JoinBytes:
    """The pass; run it after `relay_passes.pass_bytes.PassBytes`.

    A chain is a function with ``Composite`` ``dual.conv2d_chain`` that calls its sites one after another.
    """

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Return `module` with chains in place of the last site of each."""
        chains = _chains(module)
        if not chains:
            return module
        return relax.transform.DeadCodeElimination(["main"])(mutated(_Join(module, chains), module))


@dataclass(frozen=True, eq=False)
class _Link:
    """A site of bytes or of bf16, and its call."""

    target: tvm.ir.GlobalVar
    call: relax.Call
    site: Conv2dSite
    images: ByteImages


def _chains(module: IRModule) -> list[list[_Link]]:
    """Return the sites of each chain, in order."""
    found = Images(module)
    links = {
        target: _Link(target, call, _site(module, target, call), read_images(module[target]))
        for target, (_, call) in found.calls.items()
    }
    follows = {}
    for target, link in links.items():
        image, _ = found.calls[target]
        readers = found.readers.get(image, [])
        if link.images.result_type == "float32" or len(readers) != 1 or not _joinable(link, links[readers[0]], module):
            continue
        follows[target] = readers[0]
    chains = []
    for target in follows:
        if target in follows.values():
            continue
        chain = [target]
        while chain[-1] in follows:
            chain.append(follows[chain[-1]])
        chains.append([links[each] for each in chain])
    return chains


def _joinable(first: _Link, second: _Link, module: IRModule) -> bool:
    forms = [read_form(module[link.target]) for link in (first, second)]
    same = (forms[0].isa, forms[0].threads) == (forms[1].isa, forms[1].threads)
    pool = second.site.pool
    same = same and not any(form.gated for form in forms)
    kinds = same and first.site.pool is None and (pool is None or can_pool(pool))
    between = first.site.conv.output_size * SIZES[first.images.result_type]
    return (
        kinds
        and between >= LARGE * forms[0].level().second_level
        and all(can_chain(s.site.conv) for s in (first, second))
    )


def _site(module: IRModule, target, call: relax.Call) -> Conv2dSite:
    return read_conv2d(module[target], call, layer_activation(module[target]))


@mutator
class _Join(PyExprMutator):
    """Puts a call of a chain in place of that of its last site."""

    def __init__(self, module: IRModule, chains: list[list[_Link]]) -> None:
        super().__init__(module)
        self._module, self._chains = module, {chain[-1].target: chain for chain in chains}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        chain = self._chains.get(call.op) if isinstance(call.op, tvm.ir.GlobalVar) else None
        if chain is None:
            return super().visit_call_(call)
        image = chain[0].site.x
        target = self.builder_.add_func(_chain_function(self._module, chain, image), "conv2d_chain")
        return relax.Call(target, [self.visit_expr(image)])


def _chain_function(module: IRModule, chain: list[_Link], image: relax.Expr) -> relax.Function:
    names = [str(module[link.target].attrs["dual.site"]) for link in (chain[0], chain[-1])]
    x, bindings = relax.Var("x", image.ty), []
    value = x
    for link in chain:
        arguments = [value if argument.same_as(link.site.x) else argument for argument in link.call.args]
        value = relax.DataflowVar(f"y{len(bindings)}", link.call.ty)
        bindings.append(relax.VarBinding(value, relax.Call(link.target, arguments, ret_ty=link.call.ty)))
    result = relax.Var("result", value.ty)
    block = relax.DataflowBlock([*bindings, relax.VarBinding(result, value)])
    attributes = {"Composite": CHAIN, "dual.site": "_to_".join(names)}
    function = relax.Function([x], relax.SeqExpr([block], result), value.ty)
    return function.with_attrs(attributes)


def rewrite_chain(module: IRModule, function: relax.Function, call: relax.Call) -> StepCall:
    """Return the step, one kernel, in place of the call of a chain; `module` holds its sites."""
    calls = [b.value for b in function.body.blocks[0].bindings if isinstance(b.value, relax.Call)]
    functions = [module[value.op] for value in calls]
    sites = [_site(module, value.op, value) for value in calls]
    images = [read_images(each) for each in functions]
    form = read_form(functions[0])
    convs = tuple(image.of(site.conv) for site, image in zip(sites, images, strict=True))
    chain = ByteChain(convs, sites[-1].pool, chain_room(form.level()))
    biases = [byte_bias(each, form.level(), site) for each, site in zip(functions, sites, strict=True)]
    packed = pack_chain(
        *(form.level(), chain, [site.weight for site in sites], biases),
        [image.source for image in images],
        images[-1].result,
    )
    with StepBuilder() as step:
        x = step.input("x", (sites[0].conv.input_size,), images[0].source_type)
        operands = [step.operand(name, value) for name, value in zip(("weight", "floats"), packed, strict=True)]
        stage = kernel(conv2d_chain, form.level(), chain, form.threads)
        step.finish(step.call("conv2d_chain", stage, x, *operands))
    return StepCall(step, [(call.args[0], (sites[0].conv.input_size,))], outputs=[[tuple(call.ty.shape)]])
