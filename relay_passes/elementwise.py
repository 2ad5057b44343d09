"""Operators that take each value by itself, or values of two operands in pairs."""

from __future__ import annotations

from relay_passes.name_hard_swish import HARD_SWISH

#: Of one operand.
EACH = {HARD_SWISH} | {f"relax.nn.{name}" for name in ("gelu", "gelu_tanh", "leakyrelu", "relu", "silu")}
EACH |= {f"relax.{name}" for name in ("abs", "clip", "erf", "exp", "log", "negative", "sigmoid", "sqrt", "tanh")}
#: Of two operands.
PAIRS = {f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum")}
