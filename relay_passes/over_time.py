"""From one step of a recurrent layer to a sequence: the time loop goes into the kernel.

A step is one kernel of fixed shapes (`StepBuilder`). Around it this module puts the loops over
time and batch, so that a call of any length is one dispatch, code does not grow with the length, and
states never leave their place. What is best done for all samples of a batch at once, such as a product
that reads its weights once for all of them, stands between the two loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import s_tir, tirx

from relay_passes.one_memory import replaced

#: Attribute of a kernel that loops over time.
SEQUENCE = "dual.sequence"


@dataclass(frozen=True, eq=False)
class BatchStage:
    """A kernel for all samples of a batch, which a loop over time calls once per step.

    Attributes
    ----------
    kernel : PrimFunc
        ``(arrays (m, ...)..., weights..., results (m, ...)...)`` for any m.
    n_weights : int
    """

    kernel: tirx.PrimFunc
    n_weights: int


def over_time(
    step: tirx.PrimFunc, n_inputs: int, n_states: int, n_operands: int, stages: Sequence[BatchStage] = ()
) -> tirx.PrimFunc:
    """Return a kernel that takes a step for every vector of a batch of sequences, each with its own state.

    Parameters
    ----------
    step : PrimFunc
        ``(inputs..., states..., further operands..., new states..., counts...)``: inputs and states are
        ``float32`` vectors, counts ``int32 (1,)``.
    n_inputs, n_states : int
        Inputs that differ from step to step, and states.
    n_operands : int
        Inputs, states and further operands; results are behind them.
    stages : sequence of BatchStage
        What every step begins with: the first stage reads the first state of all samples, each other one the
        results of the one before it. With stages the step has one more input, behind the others: its sample's
        part of the last result.

    Returns
    -------
    PrimFunc
        ``(inputs f32[t, b, k]..., states f32[1, b, h]..., further operands..., stages' weights..., y: f32[t, 1, b, h],
        final states f32[1, b, h]..., counts...)`` for any t and b; ``y`` are the first state's values, counts means
        per step.
    """
    steps, batch, t, s = (tirx.Var(name, "int64") for name in ("steps", "batch", "t", "s"))
    vectors, first_state = step.params[:n_inputs], n_inputs + bool(stages)
    states = step.params[first_state : first_state + n_states]
    news, counts = step.params[n_operands : n_operands + n_states], step.params[n_operands + n_states :]

    def array(name: str, like, *extents):
        return tirx.decl_buffer((*extents, *like.shape), str(like.dtype), name)

    sequences = [array(f"x{i}", vector, steps, batch) for i, vector in enumerate(vectors)]
    starts = [array(f"start{i}", state, 1, batch) for i, state in enumerate(states)]
    ends = [array(f"end{i}", state, 1, batch) for i, state in enumerate(states)]
    y = array("y", states[0], steps, 1, batch)
    totals = [tirx.decl_buffer((1,), "int32", f"count{i}") for i in range(len(counts))]

    together, weights, results = _together(stages, ends[0], batch)
    places = [
        *zip(vectors, sequences, [t * batch + s] * n_inputs, strict=True),
        *((given, results[-1], s) for given in step.params[n_inputs:first_state]),
        *zip(states, ends, [s] * n_states, strict=True),
    ]
    views = {one: _view(one, whole, index) for one, whole, index in places}
    body = [tirx.DeclBuffer(views[one], data=whole.data) for one, whole, _ in places]
    body += [replaced(statement, views) for statement in statements(step)]
    body.append(_copy(news[0], lambda i: (y, [t, 0, s, i])))
    body += [_copy(new, lambda i, whole=whole: (whole, [0, s, i])) for new, whole in zip(news, ends, strict=True)]
    body += [_store(total, _load(total) + _load(count)) for total, count in zip(totals, counts, strict=True)]

    first = tirx.Var("s", "int64")
    begin = [
        _copy(start, lambda i, end=end: (end, [0, first, i]), 0, first) for start, end in zip(starts, ends, strict=True)
    ]
    before = [tirx.For(first, 0, batch, tirx.ForKind.SERIAL, tirx.SeqStmt(begin) if len(begin) > 1 else begin[0])]
    before += [_store(total, tirx.const(0, "int32")) for total in totals]
    private = [*allocated(step), *news, *counts]
    loop = tirx.For(s, 0, batch, tirx.ForKind.SERIAL, block("step", body, private))
    if stages:
        loop = tirx.SeqStmt([block("together", together), loop])
    loop = tirx.For(t, 0, steps, tirx.ForKind.SERIAL, loop)
    calls = tirx.Cast("int32", tirx.max(steps * batch, tirx.const(1, "int64")))
    after = [_store(total, tirx.floordiv(_load(total) + calls // 2, calls)) for total in totals]
    further = step.params[first_state + n_states : n_operands]
    parameters = [*sequences, *starts, *further, *weights, y, *ends, *totals]
    function = tirx.PrimFunc(parameters, block("root", [*before, loop, *after], results), step.ret_type, step.attrs)
    return function.with_attr("tirx.is_scheduled", True).with_attr(SEQUENCE, True)


def _together(stages: Sequence[BatchStage], state, batch) -> tuple[list[tirx.Stmt], list, list]:
    """Return the statements of `stages`, the weights they read, and the arrays they write."""
    first = tirx.decl_buffer((batch, state.shape[-1]), str(state.dtype), "samples", data=state.data)
    body, weights, results, read = [tirx.DeclBuffer(first, data=state.data)], [], [], [first]
    for stage in stages:
        parameters, behind = stage.kernel.params, len(read) + stage.n_weights
        written = [tirx.decl_buffer((batch, *p.shape[1:]), str(p.dtype), f"{p.name}_all") for p in parameters[behind:]]
        by = dict(zip(parameters, [*read, *parameters[len(read) : behind], *written], strict=True))
        by[parameters[0].shape[0]] = batch
        body += [replaced(statement, by) for statement in statements(stage.kernel)]
        weights += parameters[len(read) : behind]
        results += written
        read = written
    return body, weights, results


def _view(vector, whole, index) -> tirx.Var:
    """Return the `index`-th vector of an array as a buffer of its own, over the same memory."""
    length = int(vector.shape[0])
    return tirx.decl_buffer((length,), str(vector.dtype), vector.name, data=whole.data, elem_offset=index * length)


def statements(step: tirx.PrimFunc) -> list[tirx.Stmt]:
    """Return the statements of a kernel's root block."""
    body = step.body.block.body
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def allocated(step: tirx.PrimFunc) -> list[tirx.Var]:
    """Return the buffers that a kernel's root block allocates."""
    return list(step.body.block.alloc_buffers)


def block(name: str, body: list[tirx.Stmt], buffers=()) -> tirx.Stmt:
    """Return an opaque block of statements that allocates `buffers`."""
    statement = tirx.SeqStmt(body) if len(body) > 1 else body[0]
    made = s_tir.SBlock([], [], [], name, statement, alloc_buffers=list(buffers))
    return s_tir.SBlockRealize([], True, made)


def _copy(source, place: Callable, *at) -> tirx.Stmt:
    """Store the vector ``source[at]``; ``place(i)`` is the buffer and the index of its element i."""
    i = tirx.Var("i", "int64")
    buffer, indices = place(i)
    value = tirx.BufferLoad(source, [*at, i])
    return tirx.For(i, 0, int(source.shape[-1]), tirx.ForKind.SERIAL, tirx.BufferStore(buffer, value, indices))


def _load(buffer) -> tirx.PrimExpr:
    return tirx.BufferLoad(buffer, [0])


def _store(buffer, value) -> tirx.Stmt:
    return tirx.BufferStore(buffer, value, [0])
