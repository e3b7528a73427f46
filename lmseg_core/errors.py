"""What lmseg_core raises for bad input."""


class ModelError(ValueError):
    """A model, or what it was given, cannot be used: one line that names the file, the value and the fix."""
