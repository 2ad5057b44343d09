"""Compiling for a CPU: TVM's build, without a pass that takes long and has nothing to do here; each module once."""

from __future__ import annotations

from collections import OrderedDict

import tvm
from tvm_ffi import structural_equal, structural_hash

from schedules.cpu import Isa, tvm_target

#: Shrinks what is allocated to what is read and written, which takes long where loops are unrolled: 68 libraries of a
#: small network of convolutions took 54.6 s to compile with it and 37.9 s without. The machine code of 27 of them was
#: the same. Four shapes of convolutions in 28 forms in all, an LSTM and a GRU in four each, gave the same bits, and
#: took 0.987 to 1.018 of the time without the pass.
_NEEDLESS = "s_tir.CompactBufferAllocation"

#: Modules that are remembered: layers of a model in the forms that are compared, and whole models. Those of a small
#: network took 2.4 MB each.
_MOST = 64


class CompiledOnce:
    """Compiles modules, and remembers them: where weights are arguments, layers of one shape are one code.

    So are models before and after little modules were trained, and what was judged and what is exported.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: OrderedDict[tuple, tuple[tvm.IRModule, object]] = OrderedDict()

    def __call__(self, module: tvm.IRModule, isa: Isa, threads: int = 1):
        """Return what `compiled` does, or did for an equal module."""
        key = structural_hash(module), isa.name, threads
        if key in self._known and structural_equal(self._known[key][0], module):
            self._known.move_to_end(key)
            return self._known[key][1]
        executable = compiled(module, isa, threads)
        self._known[key] = module, executable
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return executable


def compiled(module: tvm.IRModule, isa: Isa, threads: int = 1):
    """Return `module`, of primitive functions or with a ``main`` of Relax, compiled for a level.

    Parameters
    ----------
    module : IRModule
    isa : Isa
    threads : int
        What ``num-cores`` of the target says; kernels divide their work by themselves.

    Returns
    -------
    tvm.runtime.Executable or tvm.relax.VMExecutable
    """
    context = tvm.transform.PassContext.current()
    without = tvm.transform.PassContext(
        opt_level=context.opt_level,
        required_pass=list(context.required_pass),
        disabled_pass=[*context.disabled_pass, _NEEDLESS],
        instruments=context.instruments,
        config=dict(context.config),
    )
    with without:
        return tvm.compile(module, target=tvm_target(isa, threads))


#: What this process has compiled lately.
compiled_once = CompiledOnce()
