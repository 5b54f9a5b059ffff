"""Python's garbage collector while a daemon loads what it consists of.

Modules, classes and compiled patterns live as long as the process. Looking through them for garbage takes a fourteenth
of the time to load them, and would go on with every full collection of a daemon that serves.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def all_of_it_stays() -> Iterator[None]:
    """Nothing is collected while the block runs, and what there is at its end never is."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
