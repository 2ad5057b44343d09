"""Expert knobs of a build. The defaults are what the README's figures were measured with."""

from __future__ import annotations

from dataclasses import dataclass, field

from relay_passes.site_plan import COARSE, COPIES
from tvm_dual.errors import PlanError
from tvm_dual.gates import GATES, RULES
from tvm_dual.little import LITTLE_BITS, PROJECTIONS, dimensions_for

MODES = ("dual", "skip", "dense", "little")
#: Units of a convolution's gate, and the forms that have such gates.
GATE_UNITS = {"auto": ("rows", "singles"), "tile": ("rows",), "output": ("singles",)}
#: Little modules of convolutions.
LITTLE_KINDS = ("projection", *COPIES, COARSE)
MINIMIZED = ("time", "operations")


@dataclass(frozen=True)
class AdvancedOptions:
    """Knobs that most users leave alone.

    Attributes
    ----------
    mode : str
        What may be used: ``dual``, everything; ``skip``, zero skipping alone, which is exact; ``dense``,
        every row; ``little``, little modules in place of every gated matrix, a static low-rank model.
    rule : str
        Gate rule, ``damage`` or ``activation``, or ``auto``: search both and keep the faster.
    gate_unit : str
        What a gate of a convolution decides on: ``tile``, a pixel and a panel of channels; ``output``, a pixel and a
        channel; or ``auto``: both are looked at, for each layer. At a `closed_share` that is tiles.
    gate_factors : dict of float
        What the bounds of single gates of recurrent layers are multiplied by: z, r and n of a GRU, i, o, f and
        g of an LSTM. A higher bound closes more rows.
    projection : str
        Of little modules: ``reduced_rank``, ``pca`` or ``random`` (the paper's).
    dimensions : int or None
        Directions per little module. None: `dimension_share` of the inputs.
    epsilon : float or None
        The paper's error bound of a random projection, between 0 and 1, instead of `dimensions`: directions are
        ``4 ln n / (e^2 / 2 - e^3 / 3)`` for a layer of n rows.
    dimension_share : float
        Directions as a share of the vectors that the little module reads.
    little_bits : int
        Precision of little modules: 8, 4 or 2; or 32, float32 throughout, projections and inputs too.
    site_dimensions : dict of int
        Directions of single sites, by name.
    little_kinds : tuple of str
        Little modules of convolutions to choose from in fp32 builds: ``projection``; ``copy8`` and ``copy4``, the
        layer's own weights at 8 or 4 bits, on bytes; ``coarse``, for blocks of two by two pixels. Alone, without a
        gate, copies make an fp32 build one of 8 bits where quality allows it; without them all of it is float32.
    keep_dense : tuple of str
        Names of sites that must stay exact.
    closed_share : float or None
        Share of the gated rows to close on the calibration data, up to 1, instead of a quality budget: no
        bound is searched, and the report says what quality results.
    finetune_steps : int
        Steps of gradient descent on the little modules of gated recurrent sites and convolutions
        (`tvm_dual.finetuning`, `tvm_dual.joint_training`); 0 keeps the closed form. The result is used if it judges
        better, or goes further within the budget. Needs torch.
    search_steps : int
        Refinements of the bound after the first bracket, each costing one ``evaluate``.
    minimize : str
        What the budget is spent on: ``time``, as measured on this machine; or ``operations``, multiply-adds, which is
        for comparisons with papers: such libraries may be slower. For fp32 builds of models of convolutions without
        states.
    """

    mode: str = "dual"
    rule: str = "auto"
    gate_unit: str = "auto"
    gate_factors: dict[str, float] = field(default_factory=dict)
    projection: str = "reduced_rank"
    dimensions: int | None = None
    epsilon: float | None = None
    dimension_share: float = 0.1
    little_bits: int = 8
    site_dimensions: dict[str, int] = field(default_factory=dict)
    little_kinds: tuple[str, ...] = ("projection", "copy8", "coarse")
    keep_dense: tuple[str, ...] = ()
    closed_share: float | None = None
    finetune_steps: int = 0
    search_steps: int = 2
    minimize: str = "time"

    def __post_init__(self) -> None:
        """Check the values.

        Raises
        ------
        PlanError
            Naming the first knob that is out of range, or two that contradict each other.
        """
        checks = {
            "mode": self.mode in MODES,
            "rule": self.rule in (*RULES, "auto"),
            "gate_unit": self.gate_unit in GATE_UNITS,
            "gate_factors": all(
                any(gate in gates for gates in GATES.values()) and factor > 0
                for gate, factor in self.gate_factors.items()
            ),
            "projection": self.projection in PROJECTIONS,
            "dimensions": self.dimensions is None or self.dimensions > 0,
            "epsilon": self.epsilon is None or 0 < self.epsilon < 1,
            "dimension_share": 0 < self.dimension_share <= 1,
            "little_bits": self.little_bits in LITTLE_BITS,
            "site_dimensions": all(k > 0 for k in self.site_dimensions.values()),
            "little_kinds": bool(self.little_kinds) and set(self.little_kinds) <= set(LITTLE_KINDS),
            "closed_share": self.closed_share is None or 0 < self.closed_share <= 1,
            "finetune_steps": self.finetune_steps >= 0,
            "search_steps": self.search_steps >= 0,
            "minimize": self.minimize in MINIMIZED,
        }
        for name, fine in checks.items():
            if not fine:
                raise PlanError(f"options: {name}={getattr(self, name)!r} is out of range; see AdvancedOptions")
        if self.dimensions is not None and self.epsilon is not None:
            raise PlanError(
                f"options: dimensions={self.dimensions} and epsilon={self.epsilon} both say how many directions "
                "little modules have; accepted: one of them"
            )

    @property
    def gates(self) -> tuple[str, ...]:
        """Forms of convolutions with a gate that are looked at."""
        return GATE_UNITS[self.gate_unit]

    def check_use(self, kinds: set[str], max_drop: float | None) -> None:
        """Check the options against the model's kinds of sites, and against what ``build`` was called with.

        Raises
        ------
        PlanError
            If `max_drop` is given beside `closed_share`, or no site has a gate that `gate_factors` names.
        """
        if self.closed_share is not None and max_drop is not None:
            raise PlanError(
                f"max_drop={max_drop} and options.closed_share={self.closed_share}: a share of closed rows stands in "
                "place of a quality budget; accepted: one of them"
            )
        gates = [gate for kind, gates in GATES.items() if kind in kinds for gate in gates]
        for gate in self.gate_factors:
            if gate not in gates:
                raise PlanError(
                    f"options: gate_factors names {gate!r}; accepted: the gates of the model's layers that can be "
                    f"rewritten, here {', '.join(gates) or 'none'}"
                )

    def site_size(self, name: str, inputs: int, rows: int) -> int:
        """Return the directions of a site's little module that reads `inputs` values, for a layer of `rows` rows."""
        if self.epsilon is not None:
            size = dimensions_for(self.epsilon, rows)
        else:
            size = self.dimensions or round(self.dimension_share * inputs)
        return max(4, min(self.site_dimensions.get(name, size), inputs))
