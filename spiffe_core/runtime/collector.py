"""Python's garbage collector while a daemon loads what it consists of, and while it serves.

Modules, classes and compiled patterns live as long as the process. Looking through them for garbage takes a fourteenth
of the time to load them, and would go on with every full collection of a daemon that serves.

Nearly everything that a call makes is gone when it ends, without the collector. Python's own setting looks through the
youngest 700 objects, which in the midst of a batch of 500 are not garbage but the batch: a tenth of its time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_OBJECTS = 10_000
"""The collector looks through the youngest objects when there are so many more of them than have gone."""
_YOUNG_TURNS, _OLD_TURNS = 5, 10


@contextmanager
def all_of_it_stays() -> Iterator[None]:
    """Nothing is collected while the block runs, what there is at its end never is, the rest in larger parts."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, _YOUNG_TURNS, _OLD_TURNS)
        gc.enable()
