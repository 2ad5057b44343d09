"""PyTorch to Relax, recurrent layers kept whole.

TVM's own importer does the work, but for recurrent layers, which it unrolls over time or gets wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import tvm
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from tvm import IRModule
from tvm.relax.frontend.torch import from_exported_program

from tvm_dual.errors import ModelError
from tvm_dual.frontend.interface import IMPORTER_ERRORS, first_line, with_interface
from tvm_dual.frontend.torch_layers import RecurrentLayers
from tvm_dual.frontend.torch_ops import KeepRecurrent, whole_operators
from tvm_dual.frontend.torch_refusals import (
    refuse_changes,
    refuse_inputs,
    refuse_modules,
    refuse_nodes,
    refuse_weights,
)
from tvm_dual.frontend.torch_step import one_step


def import_torch_module(
    model: torch.nn.Module, example_inputs: Sequence[torch.Tensor], *, dynamic_shapes=None, streaming: bool = False
) -> IRModule:
    """Import a module, in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Its float weights are float32. It is not changed.
    example_inputs : sequence of torch.Tensor, float32, int64 or int32, or of tuples of them
        What the module can be called with; extents are fixed as they are here.
    dynamic_shapes : optional
        Which extents stay open, as ``torch.export.export`` takes them. Examples of these must be 2 or more.
    streaming : bool
        Fix batch and time at 1 and make every recurrent state an input and an output of ``main``. Open extents
        become 1; where none is open, `tvm_dual.frontend.torch_step.one_step` says which do.

    Returns
    -------
    IRModule
        ``main`` with the attributes that `with_interface` names.

    Raises
    ------
    ModelError
        If the module cannot be exported, or a layer has a form that is not supported.
    """
    example_inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    refuse_modules(model)
    refuse_weights(model.named_parameters(), model.named_buffers())
    leaves, structure = tree_flatten(example_inputs)
    refuse_inputs(leaves)
    program = _exported(model, example_inputs, dynamic_shapes)
    if streaming:
        program = _exported(model, tree_unflatten(one_step(program, leaves), structure), None)
    return import_exported_program(program, streaming=streaming)


def import_exported_program(program: ExportedProgram, *, streaming: bool = False) -> IRModule:
    """Import a program that ``torch.export`` made; `streaming`, result and errors as in `import_torch_module`.

    With `streaming` its open extents become 1; the fixed ones of time and batch must be 1.
    """
    refuse_nodes(program)
    tensors = {**program.constants, **program.state_dict}
    given = [(spec.kind, spec.target) for spec in program.graph_signature.input_specs]
    refuse_weights(
        [(name, tensors[name]) for kind, name in given if kind == InputKind.PARAMETER],
        [(name, tensors[name]) for kind, name in given if kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)],
    )
    program = _decomposed(program)
    refuse_changes(program)
    layers = RecurrentLayers(program)
    try:
        module = from_exported_program(
            program,
            unwrap_unit_return_tuple=True,
            custom_convert_map=layers.converters(),
            run_ep_decomposition=False,
        )
    except IMPORTER_ERRORS as error:
        raise ModelError(f"model: TVM cannot import it: {first_line(error)}") from error
    if streaming:
        module = _bound_to_one(module)
    inputs = list(program.graph_signature.user_inputs)
    results = program.graph_signature.user_outputs
    outputs = ["output"] if len(results) == 1 else [f"output{i}" for i in range(len(results))]
    return with_interface(module, inputs, outputs, streaming)


def _exported(model: torch.nn.Module, inputs: tuple, dynamic_shapes) -> ExportedProgram:
    with warnings.catch_warnings():
        # PyTorch's recurrent layers keep their weights in a second list, too.
        warnings.filterwarnings("ignore", message="The tensor attributes? .*_flat_weights")
        try:
            with _evaluating(model), KeepRecurrent():
                return torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes)
        except ModelError:
            raise
        except Exception as error:  # the module's own code runs here
            raise ModelError(
                f"model {type(model).__name__}: torch.export refuses it with inputs of the shapes "
                f"{[tuple(value.shape) for value in tree_leaves(inputs)]}: {first_line(error)}"
            ) from error


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """Return the program in PyTorch's core operators, recurrent layers and cells whole."""
    table = torch.export.default_decompositions()
    for cell in (torch.ops.aten.lstm_cell.default, torch.ops.aten.gru_cell.default):
        table.pop(cell, None)
    with _whole_layers(program), warnings.catch_warnings():
        # PyTorch's own, of how its trees of arguments are copied.
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        owner = ExportedProgram(
            root=program.graph_module,
            graph=program.graph,
            graph_signature=program.graph_signature,
            # TVM would share the model's memory, and wants weights to be contiguous.
            state_dict={name: _own(tensor) for name, tensor in program.state_dict.items()},
            range_constraints=program.range_constraints,
            module_call_graph=program.module_call_graph,
            example_inputs=program.example_inputs,
            constants={name: _own(value) for name, value in program.constants.items()},
            verifiers=program.verifiers,
        )
        return owner.run_decompositions(table)


@contextmanager
def _whole_layers(program: ExportedProgram) -> Iterator[None]:
    """Let a program call our operators for a while: its own would be unrolled to find their results' shapes."""
    whole = whole_operators()
    changed = [(node, node.target) for node in program.graph.nodes if node.target in whole]
    for node, target in changed:
        node.target = whole[target]
    try:
        yield
    finally:
        for node, target in changed:
            node.target = target


def _own(tensor):
    """Return a contiguous copy of a tensor; other constants as they are."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    copied = tensor.detach().clone(memory_format=torch.contiguous_format)
    return torch.nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else copied


def _bound_to_one(module: IRModule) -> IRModule:
    """Return the module with 1 for every open extent of its inputs."""
    main = module["main"]
    open_extents = {str(v.name): 1 for v in tvm.relax.analysis.defined_symbolic_vars(main)}
    module["main"] = main.bind_symbolic_vars(open_extents) if open_extents else main
    return module
