"""KV blocks of the emulated cache: counts, and on request a prefix cache by block hash. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 16


def num_blocks_for(num_tokens: int) -> int:
    """Blocks that hold `num_tokens` tokens: rounded up."""
    return -(-num_tokens // BLOCK_TOKENS)


class BlockPool:
    """Blocks of one deployment. A block is free, private to a sequence, or cached under the hash of its prefix.

    Cached blocks are counted by users; one without users keeps its content until the space is needed, and the one
    unused for longest goes first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = num_blocks
        self._users: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that `take` can give: free ones and cached ones without users."""
        return self._free + len(self._unused)

    @property
    def num_used(self) -> int:
        """Blocks that a sequence holds."""
        return self.num_blocks - self.num_available

    def take(self, count: int) -> bool:
        """Make `count` blocks private; False, and nothing taken, if there are not so many."""
        if count > self.num_available:
            return False
        while count > self._free:
            self._unused.popitem(last=False)
            self._free += 1
        self._free -= count
        return True

    def give_back(self, num_private: int, shared: Sequence[int]) -> None:
        """Return a sequence's private blocks and its use of cached ones, last block first."""
        self._free += num_private
        for block_hash in reversed(shared):
            self._users[block_hash] -= 1
            if self._users[block_hash] == 0:
                del self._users[block_hash]
                self._unused[block_hash] = None

    def forget(self) -> None:
        """Drop the content of all cached blocks that no sequence uses."""
        self._free += len(self._unused)
        self._unused.clear()

    def num_cached(self, hashes: Sequence[int]) -> int:
        """Leading blocks of `hashes` that are in the cache."""
        for count, block_hash in enumerate(hashes):
            if block_hash not in self._users and block_hash not in self._unused:
                return count
        return len(hashes)

    def share(self, hashes: Sequence[int]) -> None:
        """Add a user to cached blocks; all must be in the cache (see num_cached)."""
        for block_hash in hashes:
            self._unused.pop(block_hash, None)
            self._users[block_hash] = self._users.get(block_hash, 0) + 1

    def publish(self, block_hash: int) -> bool:
        """Turn one private block into a cached one with one user; False if the same content is cached already."""
        if block_hash in self._users or block_hash in self._unused:
            return False
        self._users[block_hash] = 1
        return True
