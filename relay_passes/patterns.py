"""What checks of matched patterns share."""

from __future__ import annotations

from tvm import relax


def is_read_once(context: relax.transform.PatternCheckContext) -> bool:
    """Whether of what is matched the last value alone is read elsewhere: a fused function gives nothing else.

    Of ``y = conv(x) + bias`` in ``y + block(y)``, or ``y * sigmoid(y)``, y is needed by itself.
    """
    inner = [var for var, value in context.matched_bindings.items() if not value.same_as(context.matched_expr)]
    matched = list(context.matched_bindings)
    return all(
        isinstance(var, relax.DataflowVar) and all(user in matched for user in context.var_usages.get(var, []))
        for var in inner
    )
