"""Gates of convolutions by the damage rule in PyTorch: which channels open for what the little module predicts."""

from __future__ import annotations

import numpy as np

from schedules.conv2d_gated import gate_panels
from schedules.cpu import Isa
from tvm_dual.fitting import SiteFit
from tvm_dual.gates import EFFORTS, thresholds
from tvm_dual.sites import Site


class ConvGate:
    """The gate of a convolution; it opens what `tvm_dual.tile_gates.open_channels` says."""

    def __init__(self, torch, site: Site, fit: SiteFit, isa: Isa, gate: str = "rows") -> None:
        """Take the error spreads of a little module; `gate` is ``rows``, for tiles, or ``singles``, for outputs."""
        self._torch, self._site, self._fit, self._gate, self._members = torch, site, fit, gate, None
        if gate != "singles":
            panels = gate_panels(isa, site.conv)
            members = np.zeros((len(panels), len(site.weight)), "float32")
            for row, panel in zip(members, panels, strict=True):
                row[panel] = 1
            self._members = torch.from_numpy(members)

    def opened(self, sums, limit: float):
        """Return which channels are open at a bound.

        Parameters
        ----------
        sums : torch.Tensor, float32, (..., channels)
            What the little module predicts, with what is added before the nonlinearity.
        limit : float

        Returns
        -------
        torch.Tensor, bool, (..., channels)
        """
        linear, fit = self._torch.nn.functional.linear, self._fit
        table = thresholds(self._site, "damage", limit, fit.spread, fit.weights, gate=self._gate)
        line, offset, most = self._torch.from_numpy(table[EFFORTS.index(1.0)].astype("float32"))
        harms = (most * (line * sums + offset).clamp(0, 1)).square()
        if self._members is None:
            return harms > 1
        of_panels = (linear(harms, self._members) > 1).float()
        return linear(of_panels, self._members.T) > 0
