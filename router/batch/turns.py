"""Whose turn it is in a batch: parents before children, few shared prefixes at a time; pure."""

from collections import Counter, defaultdict
from heapq import heappop, heappush

from router.batch.order import Order

MAX_OPEN_TREES = 16
"""Prefixes in use at once: their KV should be used up before the next ones need the room."""


class Turns:
    """Hands out prompts by index; told when one has been answered.

    Open trees get equal shares: each has its instance, where its prefix is, and all should be busy.
    """

    def __init__(self, order: Order, max_open_trees: int = MAX_OPEN_TREES) -> None:
        self._order = order
        self._max_open_trees = max_open_trees
        self._place = {index: place for place, index in enumerate(order.sequence)}
        self._children: defaultdict[int, list[int]] = defaultdict(list)
        for index, parent in order.parent.items():
            self._children[parent].append(index)
        self._left = Counter(order.root.values())
        """Of each tree, not answered."""
        self._running: Counter[int] = Counter()
        """Of each open tree."""
        self._ready: dict[int, list[tuple[int, int]]] = {}
        """Of each open tree, a heap by place: whose parents are answered."""
        self._roots = [i for i in reversed(order.sequence) if i not in order.parent]
        """Not begun; the next one last."""

    def next(self) -> int | None:
        """Whose turn it is; None: somebody has to be answered first, or nobody is left."""
        if self._roots and self._may_open(self._roots[-1]):
            return self._open(self._roots.pop())
        waiting = [root for root, ready in self._ready.items() if ready]
        if not waiting:
            return None
        root = min(waiting, key=lambda root: (self._running[root], self._place[root]))
        self._running[root] += 1
        return heappop(self._ready[root])[1]

    def done(self, index: int) -> None:
        """Answered, or given up: who waits for it need not wait longer."""
        root = self._order.root[index]
        if root not in self._ready:
            return
        for child in self._children.pop(index, ()):
            heappush(self._ready[root], (self._place[child], child))
        self._running[root] -= 1
        self._left[root] -= 1
        if not self._left[root]:
            del self._ready[root], self._running[root]

    def _open(self, root: int) -> int:
        if root in self._children:
            self._ready[root] = []
            self._running[root] = 1
        return root

    def _may_open(self, root: int) -> bool:
        return root not in self._children or len(self._ready) < self._max_open_trees
