"""The error hierarchy: every foreign exception that leaves a resource is one of these."""

from typing import Any


class DeepDistillError(Exception):
    """An error a user can act on.

    Args:
        message: what went wrong, in one line.
        fix: what the user can do about it, in one line.
    """

    def __init__(self, message: str, fix: str | None = None) -> None:
        self.message = message
        self.fix = fix
        super().__init__(f"{message} Fix: {fix}" if fix else message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep message and fix apart when the error comes from another process."""
        return type(self), (self.message, self.fix)


class ComputeError(DeepDistillError):
    """The cluster that should do the work cannot be reached, or its workers failed."""


class RecipeError(DeepDistillError):
    """A recipe file is missing, malformed or contradicts itself."""


class SourceError(DeepDistillError):
    """A whole source cannot be read (a single bad row is quarantined instead)."""


class MissingPackageError(DeepDistillError):
    """A package that the recipe or profile needs is not installed."""


class ModelError(DeepDistillError):
    """A model cannot be found, converted or loaded."""


class EngineError(DeepDistillError):
    """A generation engine failed as a whole (a single failed response is a row instead)."""


class SandboxUnavailable(DeepDistillError):
    """No sandbox tier passed its self-test; untrusted code is not run."""


class StorageError(DeepDistillError):
    """The lake or the chunk store cannot be read or written, or a stored file is corrupt."""


class RowLawError(DeepDistillError):
    """Rows in differ from rows kept plus rows dropped: a bug in a stage, never bad input."""


class TrainingError(DeepDistillError):
    """A training run cannot start or finish."""


class EvaluationError(DeepDistillError):
    """Scores cannot be computed, for example because samples are missing."""
