"""Expert knobs of a build. The defaults are what the README's figures were measured with."""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm_dual.errors import PlanError
from tvm_dual.gates import RULES
from tvm_dual.little import PROJECTIONS

MODES = ("dual", "skip", "dense", "little")


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
    projection : str
        Of little modules: ``reduced_rank``, ``pca`` or ``random`` (the paper's).
    dimensions : int or None
        Directions per little module. None: `dimension_share` of the inputs.
    dimension_share : float
        Directions as a share of the vectors that the little module reads.
    little_bits : int
        8 or 4.
    site_dimensions : dict of int
        Directions of single sites, by name.
    keep_dense : tuple of str
        Names of sites that must stay exact.
    finetune_steps : int
        Steps of gradient descent on the little modules of gated recurrent sites (`tvm_dual.finetuning`); 0
        keeps the closed form. The result is used if it judges better. Needs torch.
    search_steps : int
        Refinements of the bound after the first bracket, each costing one ``evaluate``.
    """

    mode: str = "dual"
    rule: str = "auto"
    projection: str = "reduced_rank"
    dimensions: int | None = None
    dimension_share: float = 0.1
    little_bits: int = 8
    site_dimensions: dict[str, int] = field(default_factory=dict)
    keep_dense: tuple[str, ...] = ()
    finetune_steps: int = 0
    search_steps: int = 2

    def __post_init__(self) -> None:
        """Check the values.

        Raises
        ------
        PlanError
            Naming the first knob that is out of range.
        """
        checks = {
            "mode": self.mode in MODES,
            "rule": self.rule in (*RULES, "auto"),
            "projection": self.projection in PROJECTIONS,
            "dimensions": self.dimensions is None or self.dimensions > 0,
            "dimension_share": 0 < self.dimension_share <= 1,
            "little_bits": self.little_bits in (4, 8),
            "site_dimensions": all(k > 0 for k in self.site_dimensions.values()),
            "finetune_steps": self.finetune_steps >= 0,
            "search_steps": self.search_steps >= 0,
        }
        for name, fine in checks.items():
            if not fine:
                raise PlanError(f"options: {name}={getattr(self, name)!r} is out of range; see AdvancedOptions")

    def site_size(self, name: str, inputs: int) -> int:
        """Return the directions of a site's little module that reads `inputs` values."""
        size = self.site_dimensions.get(name, self.dimensions or round(self.dimension_share * inputs))
        return max(4, min(size, inputs))
