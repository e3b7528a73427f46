"""What every refusal has to be: one line that says enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tiling import InputError


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """The block raises an InputError of one line with all of `words` (file, value, fix) in it."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"
