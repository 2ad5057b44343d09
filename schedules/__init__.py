"""Kernels: TVMScript PrimFuncs where a TE/TIR schedule stood before TVM removed TE schedules.

Every kernel handles one vector (batch 1, one time step) and is written so that Relax's ``FuseTIR``
can join the stages of a site into one kernel. ``relay_passes`` wraps a fused kernel in a loop where
a model has more rows than one.
"""
