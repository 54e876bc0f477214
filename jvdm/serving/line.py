"""A fair line: clients take turns, visitors of a client take its turns, each in their order."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Line(Generic[Item]):
    """Items that wait, by the client who brought them.

    Who was served goes to the end, so that a client with a hundred items delays one with a single
    item by one turn. A client may be several people, as behind one address: what follows a blank
    in its name says who of them it is, and they take the turns of their client in turn. It is no
    more than a table: who shares it between threads holds a lock.

    Example:
        >>> line = Line()
        >>> for client, item in (("a", 1), ("a", 2), ("a", 3), ("b", 4)):
        ...     line.add(client, item)
        >>> [line.take() for _ in range(4)]
        [1, 4, 2, 3]
        >>> for client, item in (("a x", 1), ("a x", 2), ("a y", 3), ("b", 4)):
        ...     line.add(client, item)
        >>> [line.take() for _ in range(4)]
        [1, 4, 3, 2]
    """

    def __init__(self) -> None:
        # clients, and the visitors of each, in the order of turns
        self._clients: OrderedDict[str, OrderedDict[str, deque[Item]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(self.count, self._clients))

    def __iter__(self) -> Iterator[Item]:
        for visitors in self._clients.values():
            for items in visitors.values():
                yield from items

    def count(self, client: str) -> int:
        """Returns how many items of a client wait, of all its visitors."""
        name, _ = _parts(client)
        return sum(map(len, self._clients.get(name, {}).values()))

    def add(self, client: str, item: Item, first: bool = False) -> None:
        """Puts an item behind those of its client; a `first` one before all, for the next turn."""
        name, visitor = _parts(client)
        visitors = self._clients.setdefault(name, OrderedDict())
        items = visitors.setdefault(visitor, deque())
        (items.appendleft if first else items.append)(item)
        if first:
            visitors.move_to_end(visitor, last=False)
            self._clients.move_to_end(name, last=False)

    def remove(self, client: str, item: Item) -> None:
        """Takes an item out, whoever's turn it is."""
        name, visitor = _parts(client)
        visitors = self._clients[name]
        visitors[visitor].remove(item)
        if not visitors[visitor]:
            del visitors[visitor]
        if not visitors:
            del self._clients[name]

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
        for name, visitors in self._clients.items():
            turns = ((who, item) for who, items in visitors.items() for item in items)
            visitor, item = next((turn for turn in turns if ready(turn[1])), ("", None))
            if item is not None and suits(item):
                self._clients.move_to_end(name)
                visitors.move_to_end(visitor)
                self.remove(f"{name} {visitor}", item)
                return item
        return None

    def ahead(self, client: str, item: Item) -> int:
        """Returns how many items have their turn before one, if all are ready and none comes."""
        name, visitor = _parts(client)
        visitors = self._clients[name]
        own = {who: len(items) for who, items in visitors.items()}
        turn = _before(own, visitor, visitors[visitor].index(item))
        return _before({name: self.count(name) for name in self._clients}, name, turn)


def _parts(client: str) -> tuple[str, str]:
    """Returns a client, and which of its visitors it is; empty where nobody says."""
    name, _, visitor = client.partition(" ")
    return name, visitor


def _before(waiting: Mapping[str, int], name: str, turn: int) -> int:
    """Returns how many are served before the item of one that comes after `turn` of its own.

    Args:
        waiting: Items of each, in the order of turns.
        name: Whose it is.
        turn: How many of the same come before it.
    """
    before, passed = turn, False
    for other, count in waiting.items():
        passed = passed or other == name
        if other != name:
            before += min(count, turn if passed else turn + 1)
    return before
