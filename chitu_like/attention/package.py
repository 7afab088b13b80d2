"""Third-party packages that a backend is made of: imported when it is built, never before."""

from __future__ import annotations

import importlib
from types import ModuleType

from chitu_like.core.errors import UnsupportedError


def import_package(module: str, *, extra: str) -> ModuleType:
    """The module, for the backend of the same name as the extra that installs it.

    Raises: UnsupportedError where it, or something that it needs, is not installed or does not fit.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a library; versions that disagree
        raise UnsupportedError(
            f"{extra} of infer.attn_type cannot import {module} ({error}): "
            f"pip install chitu_like[{extra}], or set infer.attn_type to triton or sdpa"
        ) from error
