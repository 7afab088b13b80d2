"""What the garbage collector of a process that steps shall leave alone."""

from __future__ import annotations

import gc


def freeze_loaded_objects() -> None:
    """Take everything alive out of the collector's rounds; call it once, between loading and the loop.

    A full round visits every object that torch and the model's code made, for a tenth of a second and
    every few hundred steps, while all other ranks of the instance wait. Behind this call it visits
    only what came since.
    """
    gc.collect()
    gc.freeze()
