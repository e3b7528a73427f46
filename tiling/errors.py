"""What can go wrong, as one line for the person who has to mend it."""


class InputError(ValueError):
    """Input that cannot be used: one line with the file, the value and the fix."""


class DamageError(InputError):
    """A store that is no longer what was written; says where, and how to get a whole one."""


class OutputError(RuntimeError):
    """A result that is not what was computed; says what differs."""


class BlockError(RuntimeError):
    """A block that could not be computed; names the block and the place in the image."""
