"""Token prefix to KV block: full blocks are named by a hash of everything up to their end.

Two requests with the same first k * block_size tokens share k blocks. A block's name is a hash over
its parent's name and its own tokens, so equal names mean equal prefixes (128-bit BLAKE2b: a user
cannot craft a collision to read another user's cache).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

ROOT = b""
"""The name of the empty prefix."""


def block_names(parent: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Names of the full blocks that hold `token_ids`, in order, after the prefix called `parent`."""
    data, num_bytes = array("q", token_ids).tobytes(), 8 * block_size
    names: list[bytes] = []
    for start in range(0, len(data) - num_bytes + 1, num_bytes):
        parent = blake2b(parent + data[start : start + num_bytes], digest_size=16).digest()
        names.append(parent)
    return names


class PrefixCache:
    """Names of full blocks, and which named blocks nobody uses, oldest first.

    The cache never decides who holds a block; BlockManager tells it through `retain` and `release`.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._block_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def num_unused(self) -> int:
        """Named blocks that no request holds: they can be evicted."""
        return len(self._unused)

    def find(self, name: bytes) -> int | None:
        """The block called `name`, if it is still cached."""
        return self._block_of.get(name)

    def insert(self, name: bytes, block_id: int) -> None:
        """Name a block that some request holds; the first block of a name keeps it."""
        if name not in self._block_of and block_id not in self._name_of:
            self._block_of[name] = block_id
            self._name_of[block_id] = name

    def retain(self, block_id: int) -> None:
        """A request took this block again: it cannot be evicted now."""
        self._unused.pop(block_id, None)

    def release(self, block_id: int) -> bool:
        """The last holder let go; True where the block is named and stays as evictable."""
        if block_id not in self._name_of:
            return False
        self._unused[block_id] = None
        return True

    def evict(self) -> int:
        """Forget the block unused for longest and give it away. Needs num_unused > 0."""
        block_id, _ = self._unused.popitem(last=False)
        del self._block_of[self._name_of.pop(block_id)]
        return block_id

    def named_blocks(self) -> set[int]:
        """Every block that has a name (for integrity checks)."""
        return set(self._name_of)

    def unused_blocks(self) -> set[int]:
        """Every evictable block (for integrity checks)."""
        return set(self._unused)
