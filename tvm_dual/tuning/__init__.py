"""Autotuning: AutoTVM's templates, cost model and log, on today's TVM. `tvm_dual.tuning.api` is the way in."""
