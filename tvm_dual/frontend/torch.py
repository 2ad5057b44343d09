"""PyTorch to Relax, recurrent layers kept whole.

TVM's own importer does the work, but for recurrent layers, which it unrolls over time or gets wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import tvm
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from tvm import IRModule
from tvm.relax.frontend.torch import from_exported_program

from tvm_dual.errors import ModelError
from tvm_dual.frontend.images import FIXED
from tvm_dual.frontend.interface import IMPORTER_ERRORS, first_line, with_interface
from tvm_dual.frontend.torch_layers import RecurrentLayers, layer_label
from tvm_dual.frontend.torch_ops import ACCEPTED, PACKED, KeepRecurrent, whole_operators
from tvm_dual.frontend.torch_step import one_step

_INPUT_TYPES = (torch.float32, torch.int64, torch.int32)
#: Modes of padding whose import is right.
_PADDING = ("constant", "reflect")
#: Layers of images.
_CONVOLUTIONS = (
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv2d.padding,
    torch.ops.aten.conv_transpose2d.input,
    torch.ops.aten.max_pool2d.default,
)


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
    _refuse_modules(model)
    _refuse_weights(model.named_parameters(), model.named_buffers())
    leaves, structure = tree_flatten(example_inputs)
    _refuse_inputs(leaves)
    program = _exported(model, example_inputs, dynamic_shapes)
    if streaming:
        program = _exported(model, tree_unflatten(one_step(program, leaves), structure), None)
    return import_exported_program(program, streaming=streaming)


def import_exported_program(program: ExportedProgram, *, streaming: bool = False) -> IRModule:
    """Import a program that ``torch.export`` made; `streaming`, result and errors as in `import_torch_module`.

    With `streaming` its open extents become 1; the fixed ones of time and batch must be 1.
    """
    _refuse_nodes(program)
    tensors = {**program.constants, **program.state_dict}
    given = [(spec.kind, spec.target) for spec in program.graph_signature.input_specs]
    _refuse_weights(
        [(name, tensors[name]) for kind, name in given if kind == InputKind.PARAMETER],
        [(name, tensors[name]) for kind, name in given if kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)],
    )
    program = _decomposed(program)
    _refuse_changes(program)
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


def _refuse_modules(model: torch.nn.Module) -> None:
    """Name the first recurrent module of a form that is not supported."""
    for name, module in model.named_modules():
        label = f"layer '{name or type(module).__name__}' ({type(module).__name__})"
        if isinstance(module, torch.nn.RNN):
            raise ModelError(f"{label}: not supported; accepted recurrent layers: {ACCEPTED}")
        if isinstance(module, torch.nn.LSTM) and module.proj_size:
            raise ModelError(
                f"{label}: proj_size is {module.proj_size}; accepted: 0. Train the model without a projection"
            )


def _refuse_inputs(inputs: Sequence) -> None:
    for i, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor) or value.dtype not in _INPUT_TYPES:
            found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ModelError(f"example input {i}: {found}; accepted: tensors of float32, int64 or int32")


def _refuse_nodes(program: ExportedProgram) -> None:
    """Name the first operator whose import would give a wrong result, and inputs of other dtypes."""
    aten = torch.ops.aten
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor) or value.dtype not in _INPUT_TYPES:
                found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
                raise ModelError(f"input '{node.name}': {found}; accepted: tensors of float32, int64 or int32")
        if node.target in (aten.lstm.data, aten.gru.data, aten._pack_padded_sequence.default):
            raise ModelError(f"{layer_label(node, 'packed')}: {PACKED}")
        if node.target == aten.pad.default and "mode" in (given := _arguments(node)) and given["mode"] not in _PADDING:
            raise ModelError(
                f"{layer_label(node, 'pad')}: mode {given['mode']!r}; accepted: {', '.join(_PADDING)}. "
                "Train the model with zeros around its images, or pad them before the model"
            )
        if node.target in _CONVOLUTIONS:
            image = node.args[0].meta["val"].shape
            if not all(isinstance(extent, int) for extent in image[2:]):
                raise ModelError(f"{layer_label(node, 'conv')}: reads an image of the shape {tuple(image)}; {FIXED}")
        if node.target in (aten.rnn_tanh.input, aten.rnn_relu.input):
            raise ModelError(f"{layer_label(node, 'rnn')}: not supported; accepted recurrent layers: {ACCEPTED}")


def _arguments(node: torch.fx.Node) -> dict:
    """Return a node's arguments by name, as far as they are given."""
    names = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _refuse_changes(program: ExportedProgram) -> None:
    """Name the first buffer or input that is written to, which the import would leave out."""
    for spec in program.graph_signature.output_specs:
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
            raise ModelError(
                f"model: forward changes '{spec.target}'; accepted: modules that leave buffers and inputs as they are. "
                "Return what changes as an output"
            )


def _refuse_weights(
    parameters: Iterable[tuple[str, torch.Tensor]], buffers: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Name the first weight of another dtype, or that holds NaN, or infinity: buffers may, such as masks."""
    for tensors, wrong in ((parameters, lambda t: ~torch.isfinite(t)), (buffers, torch.isnan)):
        for name, tensor in tensors:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            if tensor.dtype != torch.float32:
                raise ModelError(f"weight '{name}': {tensor.dtype}; accepted: float32. Convert with model.float()")
            if wrong(tensor).any():
                raise ModelError(
                    f"weight '{name}': holds NaN or infinity; accepted: numbers. Train or load the model anew"
                )
