"""Who holds which KV block: paged allocation (Kwon et al. 2023, arXiv:2309.06180) with sharing.

A request's block table lists the blocks of its positions in order. Blocks are counted by holders;
only full blocks are ever shared, so no request writes into a block that another one reads.
"""

from __future__ import annotations

from collections import deque

from chitu_like.core.request import Request
from chitu_like.kvcache.prefix_cache import ROOT, PrefixCache, block_names


class _Table:
    """One request's blocks, the names of its full blocks, and how many were offered to others."""

    __slots__ = ("block_ids", "host_block_ids", "names", "num_named")

    def __init__(self) -> None:
        self.block_ids: list[int] = []
        self.host_block_ids: list[int] = []  # where they were swapped to; empty unless swapped out
        self.names: list[bytes] = []
        self.num_named = 0

    def first_names(self, request: Request, count: int, size: int) -> list[bytes]:
        """Names of its first full blocks, `count` of them at least. Not to be modified.

        Each is hashed once in the request's life, when first asked for.
        """
        names = self.names
        if count > len(names):
            tokens = request.known_tokens(len(names) * size, count * size)
            names += block_names(names[-1] if names else ROOT, tokens, size)
        return names


class BlockManager:
    """Allocates, shares, swaps and frees the KV blocks of one instance.

    Every method either does all it says or changes nothing.

    Args:
        num_blocks: blocks on the device, ids 0 to num_blocks - 1.
        block_size: tokens a block.
        enable_prefix_caching: share full blocks of equal prefixes.
        num_host_blocks: blocks in host memory for swapped-out requests.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        num_host_blocks: int = 0,
    ) -> None:
        """Start with every block free."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_host_blocks = num_host_blocks
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._cache = PrefixCache() if enable_prefix_caching else None
        self._free: deque[int] = deque(range(num_blocks))
        self._free_host: deque[int] = deque(range(num_host_blocks))
        self._num_holders = [0] * num_blocks
        self._tables: dict[str, _Table] = {}

    @property
    def num_free(self) -> int:
        """Blocks an allocation could get: never used, given back, or cached but held by nobody."""
        return len(self._free) + (self._cache.num_unused if self._cache else 0)

    @property
    def usage(self) -> float:
        """Share of device blocks held by requests, 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks if self.num_blocks else 0.0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def block_ids(self, request: Request) -> list[int]:
        """The request's block table; empty where it holds none. Not to be modified."""
        table = self._tables.get(request.request_id)
        return table.block_ids if table else []

    def num_to_admit(self, request: Request) -> int:
        """Free blocks that its known tokens would use up, its cached prefix being shared."""
        cached = self._cached_prefix(request)
        shared = sum(self._num_holders[block_id] > 0 for block_id in cached)
        return self.blocks_for(request.num_known_tokens) - shared

    def count_cached(self, request: Request) -> int:
        """Leading tokens of a waiting request that are cached; at least one is left to compute."""
        return len(self._cached_prefix(request)) * self.block_size

    def attach_prefix(self, request: Request) -> int:
        """Open the request's table with the cached blocks of its prefix.

        Returns: tokens they hold, a multiple of block_size and less than its known tokens.
        """
        cached = self._cached_prefix(request)
        for block_id in cached:
            self._hold(block_id)
        table = self._table(request)
        table.block_ids = cached
        table.num_named = len(cached)
        self.prefix_queries += request.num_known_tokens
        self.prefix_hits += len(cached) * self.block_size
        return len(cached) * self.block_size

    def extend(self, request: Request, num_tokens: int) -> bool:
        """Give the request room for `num_tokens` tokens in all; False where blocks lack."""
        table = self._table(request)
        missing = self.blocks_for(num_tokens) - len(table.block_ids)
        if missing <= 0:
            return True
        if missing > self.num_free:
            return False
        table.block_ids += [self._take() for _ in range(missing)]
        return True

    def name_full_blocks(self, request: Request, num_tokens: int) -> None:
        """Offer to others the blocks that the request's first `num_tokens` tokens fill.

        Args:
            request: its table must reach that far.
            num_tokens: computed by a batch already scheduled: later ones may read them. A block
                with tokens that are not known yet waits for a later call.
        """
        if self._cache is None:
            return
        table = self._tables[request.request_id]
        num_known = request.num_known_tokens
        count = (num_tokens if num_tokens < num_known else num_known) // self.block_size
        if count <= table.num_named:
            return
        names = table.first_names(request, count, self.block_size)
        for index in range(table.num_named, count):
            self._cache.insert(names[index], table.block_ids[index])
        table.num_named = count

    def free(self, request: Request) -> None:
        """Let go of all the request holds, on the device and the host."""
        table = self._tables.pop(request.request_id, None)
        if table is None:
            return
        for block_id in reversed(table.block_ids):  # a prefix outlives its continuation
            self._let_go(block_id)
        self._free_host.extend(table.host_block_ids)

    def swap_out(self, request: Request) -> list[tuple[int, int]] | None:
        """Move the request's blocks to the host.

        Returns: (device block, host block) copies to make before its device blocks are written
            again, or None where the host has no room.
        """
        table = self._tables[request.request_id]
        if not table.block_ids or len(table.block_ids) > len(self._free_host):
            return None
        table.host_block_ids = [self._free_host.popleft() for _ in table.block_ids]
        copies = list(zip(table.block_ids, table.host_block_ids, strict=True))
        for block_id in reversed(table.block_ids):
            self._let_go(block_id)
        table.block_ids = []
        return copies

    def num_host_blocks_of(self, request: Request) -> int:
        """Host blocks the request holds; 0 unless it is swapped out."""
        table = self._tables.get(request.request_id)
        return len(table.host_block_ids) if table else 0

    def swap_in(self, request: Request) -> list[tuple[int, int]]:
        """Bring a swapped-out request back, into blocks of its own (it shares none any more).

        Needs num_host_blocks_of(request) free blocks.

        Returns: (host block, device block) copies to make before it is computed. The host blocks are
            free at once: of one step, all copies out must be chosen before any copy in.
        """
        table = self._tables[request.request_id]
        table.block_ids = [self._take() for _ in table.host_block_ids]
        copies = list(zip(table.host_block_ids, table.block_ids, strict=True))
        self._free_host.extend(table.host_block_ids)
        table.host_block_ids = []
        return copies

    def check_integrity(self) -> None:
        """Recount everything from the tables.

        Raises:
            RuntimeError: a block is lost, free and held at once, or miscounted; says which.
        """
        holders = [0] * self.num_blocks
        for table in self._tables.values():
            for block_id in table.block_ids:
                holders[block_id] += 1
        for block_id, counted in enumerate(holders):
            if counted != self._num_holders[block_id]:
                raise RuntimeError(
                    f"block {block_id}: {counted} holders, counted {self._num_holders[block_id]}"
                )
        unused = self._cache.unused_blocks() if self._cache else set()
        free = list(self._free) + sorted(unused)
        if len(set(free)) != len(free):
            raise RuntimeError(f"a block is free twice: {sorted(free)}")
        held = {block_id for block_id, count in enumerate(holders) if count}
        if held & set(free) or len(held) + len(free) != self.num_blocks:
            raise RuntimeError(f"held {sorted(held)} and free {sorted(free)} do not add up")
        if self._cache and not unused <= self._cache.named_blocks():
            raise RuntimeError("an evictable block has no name")
        host = [b for table in self._tables.values() for b in table.host_block_ids]
        if sorted(host + list(self._free_host)) != list(range(self.num_host_blocks)):
            raise RuntimeError(f"host blocks {sorted(host)} and free ones do not add up")

    def _table(self, request: Request) -> _Table:
        table = self._tables.get(request.request_id)
        if table is None:
            table = self._tables[request.request_id] = _Table()
        return table

    def _cached_prefix(self, request: Request) -> list[int]:
        """The leading cached blocks that leave at least one token to compute."""
        found: list[int] = []
        if self._cache is None:
            return found
        count = (request.num_known_tokens - 1) // self.block_size
        table = self._table(request)
        for index in range(count):
            names = table.first_names(request, index + 1, self.block_size)
            block_id = self._cache.find(names[index])
            if block_id is None:
                break
            found.append(block_id)
        return found

    def _take(self) -> int:
        """One free block, evicting the oldest cached one where none other is left."""
        if self._free:
            block_id = self._free.popleft()
        elif self._cache:
            block_id = self._cache.evict()
        else:
            raise RuntimeError("no free block: callers compare num_free first")
        self._num_holders[block_id] = 1
        return block_id

    def _hold(self, block_id: int) -> None:
        if self._num_holders[block_id] == 0 and self._cache:
            self._cache.retain(block_id)
        self._num_holders[block_id] += 1

    def _let_go(self, block_id: int) -> None:
        self._num_holders[block_id] -= 1
        if self._num_holders[block_id] == 0 and not (self._cache and self._cache.release(block_id)):
            self._free.append(block_id)
