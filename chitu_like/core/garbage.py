"""What the garbage collector of a process that steps shall leave alone."""

from __future__ import annotations

import gc
from typing import ClassVar


def freeze_loaded_objects() -> None:
    """Take everything alive out of the collector's rounds; call it between loading and the loop.

    A full round visits every object that torch and the model's code made, for a tenth of a second and
    every few hundred steps, while all other ranks of the instance wait. Behind this call it visits
    only what came since.
    """
    gc.unfreeze()  # what an earlier call kept may be garbage by now
    gc.collect()
    gc.freeze()


class LoadedObjects:
    """What one of several parts of a program loaded, frozen for as long as any of them needs it.

    Python keeps one list of frozen objects a process, which says nothing of whose they are. So who
    wants it is noted here, for the whole process too, and only the last to end empties the list.
    """

    _frozen: ClassVar[set[LoadedObjects]] = set()

    def freeze(self) -> None:
        """See `freeze_loaded_objects`."""
        self._frozen.add(self)
        freeze_loaded_objects()

    def thaw(self) -> None:
        """What is left of it may be collected, once no other part needs the list."""
        self._frozen.discard(self)
        if not self._frozen:
            gc.unfreeze()
