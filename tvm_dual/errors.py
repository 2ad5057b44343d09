"""What can go wrong, by name. Every message says what, found, accepted, and what to do."""


class TvmDualError(Exception):
    """Base of every error this project raises on purpose."""


class ModelError(TvmDualError):
    """The model file cannot be read, or holds a layer in a form that is not supported."""


class DataError(TvmDualError):
    """Calibration data, or an input of a call, has the wrong shape, dtype or values."""


class EvaluationError(TvmDualError):
    """The caller's ``evaluate`` raised, or returned something that is not a finite number."""


class LibraryError(TvmDualError):
    """A library file cannot be written, read, or run on this machine."""


class SetupError(TvmDualError):
    """The installed packages or tools are not the ones this project works with."""


class PlanError(TvmDualError):
    """A plan does not fit the model, or its JSON form cannot be read."""


class BudgetError(PlanError):
    """The precision alone, with every row computed, loses more quality than is allowed."""
