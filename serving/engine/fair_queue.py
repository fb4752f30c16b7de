"""`FairQueue`: a round-robin queue over callers, first come, first served for each caller."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several callers. After a caller is served, every other caller with items is served before it again."""

    def __init__(self, like: "FairQueue[T] | None" = None) -> None:
        """An empty queue, or a copy of another one with its items and turns."""
        others = like._items.items() if like is not None else ()
        self._items: OrderedDict[str, deque[T]] = OrderedDict((key, deque(items)) for key, items in others)

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def __iter__(self) -> Iterator[T]:
        """All items in the order in which `pop` would return them, if no more were pushed."""
        turns = [list(items) for items in self._items.values()]
        for i in range(max(map(len, turns), default=0)):
            yield from (items[i] for items in turns if i < len(items))

    def push(self, key: str, item: T) -> None:
        self._items.setdefault(key, deque()).append(item)

    def peek(self) -> T:
        """The item that `pop` would return. The queue must not be empty."""
        return next(iter(self._items.values()))[0]

    def pop(self) -> T:
        """Remove and return the next item. The queue must not be empty."""
        key, items = next(iter(self._items.items()))
        item = items.popleft()
        self._items.move_to_end(key)
        if not items:
            del self._items[key]
        return item

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Remove and return all items for which `unwanted` is true."""
        removed = [item for items in self._items.values() for item in items if unwanted(item)]
        for key, items in list(self._items.items()):
            kept = deque(item for item in items if not unwanted(item))
            if kept:
                self._items[key] = kept
            else:
                del self._items[key]
        return removed
