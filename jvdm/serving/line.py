"""A fair line: clients take turns, and what one client brought first is taken first."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Line(Generic[Item]):
    """Items that wait, by the client who brought them.

    Who was served goes to the end, so that a client with a hundred items delays one with a single
    item by one turn. It is no more than a table: who shares it between threads holds a lock.

    Example:
        >>> line = Line()
        >>> for client, item in (("a", 1), ("a", 2), ("a", 3), ("b", 4)):
        ...     line.add(client, item)
        >>> [line.take() for _ in range(4)]
        [1, 4, 2, 3]
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[Item]] = OrderedDict()  # in the order of turns

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def __iter__(self) -> Iterator[Item]:
        for items in self._clients.values():
            yield from items

    def count(self, client: str) -> int:
        """Returns how many items of a client wait."""
        return len(self._clients.get(client, ()))

    def add(self, client: str, item: Item, first: bool = False) -> None:
        """Puts an item behind those of its client; a `first` one before all, for the next turn."""
        items = self._clients.setdefault(client, deque())
        (items.appendleft if first else items.append)(item)
        if first:
            self._clients.move_to_end(client, last=False)

    def remove(self, client: str, item: Item) -> None:
        """Takes an item out, whoever's turn it is."""
        self._clients[client].remove(item)
        if not self._clients[client]:
            del self._clients[client]

    def take(
        self,
        ready: Callable[[Item], bool] = lambda item: True,
        suits: Callable[[Item], bool] = lambda item: True,
    ) -> Item | None:
        """Takes out the next item.

        Args:
            ready: Whether an item can have its turn; others of its client may overtake it if not.
            suits: Whether the first item of a client that is ready is wanted now; what comes
                behind it is not asked.

        Returns:
            The item, None where there is none.
        """
        for client, items in self._clients.items():
            item = next(filter(ready, items), None)
            if item is not None and suits(item):
                self._clients.move_to_end(client)
                self.remove(client, item)
                return item
        return None

    def ahead(self, client: str, item: Item) -> int:
        """Returns how many items have their turn before one, if all are ready and none comes."""
        turn = self._clients[client].index(item)
        before, passed = turn, False
        for other, items in self._clients.items():
            passed = passed or other == client
            if other != client:
                before += min(len(items), turn if passed else turn + 1)
        return before
