"""The compilation, phase by phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax

from relay_passes.channels_last import ChannelsLast
from relay_passes.copied_littles import CopyLittles
from relay_passes.divide_step import DivideStep
from relay_passes.fold_affine import FoldAffine
from relay_passes.fold_batch_norm import FoldBatchNorm
from relay_passes.fold_batch_norm_forward import FoldBatchNormForward
from relay_passes.fold_layouts import FoldLayouts
from relay_passes.fuse_step import FuseStep
from relay_passes.instrument import DumpModule, LogProgress
from relay_passes.join_bytes import JoinBytes
from relay_passes.mark_sites import MarkSites
from relay_passes.name_activations import NameActivations
from relay_passes.name_hard_swish import NameHardSwish
from relay_passes.one_memory import OneMemory
from relay_passes.pass_bytes import PassBytes
from relay_passes.pass_lists import PassLists
from relay_passes.pointwise_convs import PointwiseConvs
from relay_passes.pool_first import PoolFirst
from relay_passes.rewrite_conv2d import RewriteConv2d
from relay_passes.rewrite_dense import RewriteDense
from relay_passes.rewrite_depthwise import RewriteDepthwise
from relay_passes.rewrite_gru import RewriteGru
from relay_passes.rewrite_lstm import RewriteLstm
from relay_passes.rewrite_transposes import RewriteTransposes
from relay_passes.schedule_loops import ScheduleLoops
from relay_passes.signal_convs import SignalConvs
from relay_passes.site_plan import AttachPlan
from relay_passes.split_littles import SplitLittles
from relay_passes.subpixel_convs import SubpixelConvs
from relay_passes.vector_functions import VectorFunctions
from schedules.cpu import Isa


@dataclass(frozen=True)
class Watch:
    """Who looks at the module between phases.

    Attributes
    ----------
    progress : callable, optional
        Called with the name of each phase as it starts.
    dump : Path, optional
        Folder that receives the module after each phase.
    """

    progress: Callable[[str], None] | None = None
    dump: Path | None = None


def prepare_pipeline() -> tvm.transform.Pass:
    """From the importer's module to one whose layers are named sites."""
    return tvm.transform.Sequential(
        [
            FoldLayouts(),
            relax.transform.FoldConstant(),
            NameActivations(),
            SignalConvs(),
            SubpixelConvs(),
            FoldBatchNorm(),
            FoldAffine(),
            PoolFirst(),
            FoldBatchNormForward(),
            ChannelsLast(),
            NameHardSwish(),
            PointwiseConvs(),
            MarkSites(),
        ]
    )


def rewrite_pipeline(plan: AttachPlan) -> tvm.transform.Pass:
    """From marked sites to stages of kernels, which are not joined yet: enough to see which kernels a plan needs."""
    return tvm.transform.Sequential([plan, *_rewrites()])


def _rewrites() -> list[tvm.transform.Pass]:
    return [
        RewriteDense(),
        CopyLittles(),
        SplitLittles(),
        PassBytes(),
        JoinBytes(),
        PassLists(),
        RewriteConv2d(),
        RewriteGru(),
        RewriteLstm(),
    ]


def dual_pipeline(
    plan: AttachPlan, isa: Isa, threads: int, watch: Watch | None = None, *, whole: bool = True
) -> tvm.transform.Pass:
    """From marked sites to kernels of a level and a number of threads, ready for TVM's own build.

    Without `whole` the kernels of a step stay apart.
    """
    phases = {
        # 1. Each site's function says how it is to be rewritten.
        "1_plan": [plan],
        # 2. Planned sites become stages: project, little, gate, gated rows, epilogue.
        "2_rewrite": _rewrites(),
        # 3. What is no site and has a kernel nevertheless becomes steps, too. All agree on plain vectors; what was
        # reshaped back and forth is not any more.
        "3_others": [
            RewriteDepthwise(isa, threads),
            RewriteTransposes(isa, threads),
            relax.transform.CanonicalizeBindings(),
            relax.transform.RemoveRedundantReshape(),
        ],
        # 4. Layers left to TVM become kernels of one pass over memory; a site's stages become one.
        "4_fuse": [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            ScheduleLoops(threads),
            VectorFunctions(),
            relax.transform.DeadCodeElimination(["main"]),
        ],
        # 5. A streamed step becomes one kernel, so that nothing is allocated or dispatched within it.
        "5_step": [
            relax.transform.ConvertToDataflow(),
            relax.transform.CanonicalizeBindings(),
            FuseStep(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(["main"]),
            OneMemory(),
            DivideStep(),
        ],
    }
    if not whole:
        del phases["5_step"]
    return tvm.transform.Sequential([step for name, passes in phases.items() for step in _watched(name, passes, watch)])


def _watched(name: str, passes: list, watch: Watch | None) -> list:
    before = [LogProgress(name, watch.progress)] if watch and watch.progress else []
    after = [DumpModule(name, watch.dump)] if watch and watch.dump else []
    return [*before, *passes, *after]
