"""Name to implementation: a registry imports its folder at the first look-up, so a new file edits no list."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from typing import Generic, TypeVar

from chitu_like.core.errors import UnsupportedError

T = TypeVar("T")


class Registry(Generic[T]):
    """The implementations of one kind, each under one or more names.

    Args:
        kind: what they are, for messages ("model", "attention backend").
        folder: dotted package whose modules register themselves when imported.
        set_by: the configuration key a user would change.
    """

    def __init__(self, kind: str, folder: str, set_by: str) -> None:
        self._kind = kind
        self._folder = folder
        self._set_by = set_by
        self._entries: dict[str, T] = {}
        self._is_loaded = False

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorator that files an implementation under each of `names`."""

        def add(entry: T) -> T:
            for name in names:
                if self._entries.setdefault(name, entry) is not entry:
                    raise ValueError(f"two implementations of {self._kind} {name!r}")
            return entry

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load_folder()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """The implementation called `name`.

        Raises:
            UnsupportedError: there is none; the message lists the nearest or all names.
        """
        self._load_folder()
        if name in self._entries:
            return self._entries[name]
        near = get_close_matches(name, self._entries, n=3) or sorted(self._entries)
        raise UnsupportedError(
            f"{self._kind} {name!r} is not known: use {', '.join(near)} ({self._set_by})"
        )

    def _load_folder(self) -> None:
        if self._is_loaded:
            return
        package = importlib.import_module(self._folder)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._folder}.{module.name}")
        self._is_loaded = True
