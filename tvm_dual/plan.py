"""The plan: for every site, rewrite or leave dense, which little module, which thresholds, and why."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from tvm_dual.dataclass_values import from_dict
from tvm_dual.errors import PlanError

PLAN_VERSION = 1


@dataclass(frozen=True)
class SitePlan:
    """What happens to one site.

    Attributes
    ----------
    name, kind : str
    input, hidden : str
        Form of the input's and the state's matrix: ``dense``, ``columns``, ``rows``, ``singles`` or ``little``
        or, of a convolution, ``nonzeros`` (`relay_passes.site_plan.SiteForm`); ``tvm`` where the layer is left to TVM.
    precision : str
        Of the big module: ``fp32``, ``int8`` or, of a convolution, ``bf16``.
    rule : str
        Gate rule, empty without a gate.
    little : str
        Kind of the little module: ``projection``, of a convolution also ``copy`` or ``coarse``; empty without one.
    projection : str
        Of the little module, empty without one, and of a copy.
    dimensions, little_bits : int
        Size and precision of the little module, 0 without one; a copy has no size.
    tuned : bool
        Whether the little module was fine-tuned.
    refit : bool
        Whether it was fitted again to the tiles that are closed at `limit`.
    zeros : int
        Channels whose closed tiles hold zero.
    limit : float
        The gate's bound at effort 1: in units of damage, or the activation rule's margin.
    density : float
        Open rows, tiles or outputs / all on the calibration data; 1 if all are computed, 0 if the little module stands
        alone.
    weight_bytes : int
        Bytes of all weights of the big module at this precision.
    bytes_read : float
        Bytes of weights read per call, little module included, mean over the calibration data.
    reason : str
        Why this form, in words.
    gate_factors : tuple of float
        What the bound is multiplied by for each gate of a recurrent layer.
    operations, all_operations : float
        Multiply-adds per call, little module included, mean over the calibration data, and those of the big module;
        per vector, if a call may see any number.
    scale, zero : float, int
        Scale and zero point of the bytes that a convolution of int8 reads, or a copy that is its little module.
    order : tuple of int
        Which channel of the model comes at each place of a convolution's output; empty if they stay as they are.
    """

    name: str
    kind: str
    input: str
    hidden: str
    precision: str
    rule: str = ""
    little: str = ""
    projection: str = ""
    dimensions: int = 0
    little_bits: int = 0
    tuned: bool = False
    refit: bool = False
    zeros: int = 0
    limit: float = 0.0
    density: float = 1.0
    weight_bytes: int = 0
    bytes_read: float = 0.0
    reason: str = ""
    gate_factors: tuple[float, ...] = ()
    operations: float = 0.0
    all_operations: float = 0.0
    scale: float = 0.0
    zero: int = 0
    order: tuple[int, ...] = ()

    @property
    def gated(self) -> bool:
        """Whether a gate decides at run time."""
        return bool({"rows", "singles"} & {self.input, self.hidden})


@dataclass(frozen=True)
class Trial:
    """One point of the search for thresholds.

    Attributes
    ----------
    rule : str
    limit : float
        The bound tried; 0 where sites have bounds of their own.
    density : float
        Open rows / gated rows.
    quality : float
        What ``evaluate`` returned, or the agreement with the dense model.
    microseconds : float
        Median time of a call.
    limits : dict of float
        By site, where sites have bounds of their own: of every site that is not exact.
    """

    rule: str
    limit: float
    density: float
    quality: float
    microseconds: float
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def bounds(self) -> float | dict[str, float]:
        """The bound of all sites, or those of each."""
        return self.limits or self.limit


@dataclass(frozen=True)
class FineTuning:
    """Trained little modules beside the closed form they started from.

    Attributes
    ----------
    steps : int
        Of gradient descent.
    closed_form, tuned : Trial
        Both at one bound of the damage rule, or at the bounds of one list of steps (`tvm_dual.step_search`). The
        trained ones are kept if their quality is higher, or if they go further within the budget.
    closed_form_in_budget, tuned_in_budget : Trial or None
        Both at the bound that the quality budget leaves each of them, by the rule that the plan follows. None
        where nothing was kept, or where no bound met the budget.
    """

    steps: int
    closed_form: Trial
    tuned: Trial
    closed_form_in_budget: Trial | None = None
    tuned_in_budget: Trial | None = None

    @property
    def kept(self) -> bool:
        """Whether the trained little modules are used."""
        return self.tuned.quality > self.closed_form.quality or self.tuned_in_budget is not None


@dataclass(frozen=True)
class KernelChoice:
    """Where a kernel's knobs come from.

    Attributes
    ----------
    kernel : str
        Family and extents.
    origin : str
        ``tuned``, ``transferred`` (from a kernel of a near shape, or another CPU), or ``default``.
    knobs : dict of int
    source : str
        The log, and the kernel that the record is of if that is another; for defaults, why there is no record.
    """

    kernel: str
    origin: str
    knobs: dict
    source: str = ""


@dataclass(frozen=True)
class Plan:
    """A whole model's plan.

    Attributes
    ----------
    sites : tuple of SitePlan
        In graph order.
    precision, isa : str
    threads : int
    quality_kind : str
        ``evaluate`` or ``agreement``.
    dense_quality, quality, max_drop : float
        Of the dense fp32 model, of this plan (both on calibration data), and the drop allowed.
    dense_microseconds, microseconds : float
        Median time of a call of the dense build of equal precision, and of this plan.
    efforts : tuple of float
        The values of effort that have thresholds of their own.
    trials : tuple of Trial
        The search, for both rules.
    calibration_hash : str
        SHA-256 of the calibration data.
    samples : int
        Calls that calibration observed.
    finetuning : FineTuning or None
        None if nothing was trained.
    kernels : tuple of KernelChoice
        Of the library that the plan travels in.
    version : int
    """

    sites: tuple[SitePlan, ...]
    precision: str
    isa: str
    threads: int
    quality_kind: str
    dense_quality: float
    quality: float
    max_drop: float
    dense_microseconds: float
    microseconds: float
    efforts: tuple[float, ...]
    calibration_hash: str
    samples: int
    trials: tuple[Trial, ...] = field(default_factory=tuple)
    finetuning: FineTuning | None = None
    kernels: tuple[KernelChoice, ...] = ()
    version: int = PLAN_VERSION

    def to_json(self) -> str:
        """Return the JSON form."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read the JSON form.

        Raises
        ------
        PlanError
            If the text is not JSON, lacks a field, or is of another version.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"plan: not JSON ({error}); accepted: what Plan.to_json wrote") from error
        found = values.get("version") if isinstance(values, dict) else None
        if found != PLAN_VERSION:
            raise PlanError(f"plan: version {found}; accepted: {PLAN_VERSION}. Build the plan anew")
        return from_dict(cls, values)
