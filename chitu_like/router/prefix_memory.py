"""Where prompts were sent: blocks of tokens and the instance that saw each last. Bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from chitu_like.kvcache.prefix_cache import ROOT, block_names

BLOCK_TOKENS = 64
"""Tokens of one block. An engine's own blocks are smaller; here half a page of text tells prompts
apart as well, for a quarter of the hashing."""
MAX_BLOCKS_PER_PROMPT = 512
"""32768 tokens. Prompts that agree so far belong together, whatever follows."""
MAX_BLOCKS = 1 << 17
"""8 Mi tokens in some 25 MB: about what the KV caches of a node full of devices hold."""


class PrefixMemory:
    """Prefix to instance, for the blocks that were sent last.

    A block is named by a hash of everything up to its end, so one look-up compares whole prefixes.
    It guesses: the instance may have dropped the prefix since. A wrong guess costs time alone.

    Args:
        max_blocks: remembered at most; the one not sent for longest goes first.
    """

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._instance_of: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        """Blocks remembered."""
        return len(self._instance_of)

    def names(self, token_ids: Sequence[int]) -> list[bytes]:
        """Names of a prompt's full blocks, from its beginning."""
        return block_names(ROOT, token_ids[: MAX_BLOCKS_PER_PROMPT * BLOCK_TOKENS], BLOCK_TOKENS)

    def find(self, names: Sequence[bytes]) -> int | None:
        """The instance that saw the longest remembered prefix."""
        known = (self._instance_of.get(name) for name in reversed(names))
        return next((instance for instance in known if instance is not None), None)

    def remember(self, names: Sequence[bytes], instance: int) -> None:
        """Note that a prompt with these blocks was sent to `instance`."""
        for name in reversed(names):  # a prefix must not be forgotten before what follows it
            self._instance_of[name] = instance
            self._instance_of.move_to_end(name)
        while len(self._instance_of) > self._max_blocks:
            self._instance_of.popitem(last=False)
