"""What lmseg_core raises for bad input."""


class ModelError(ValueError):
    """A model, or what it was given, cannot be used: one line that names the file, the value and the fix."""


class TrainingError(RuntimeError):
    """A training had to stop: one line that says where, what is kept and what to do."""


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line: its first, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
