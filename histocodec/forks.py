"""What a forked child must not inherit: locks that threads of its parent held, and those threads themselves."""

import os
import threading
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """An object that a forked child has to begin anew."""

    def renew(self) -> None:
        """Makes new locks and forgets other threads. Called in the child, which has a single thread then."""


_renewables: WeakSet[Renewable] = WeakSet()


class Lock:
    """A `threading.Lock` that nobody holds in a forked child."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """See `Renewable`."""
        self._lock = threading.Lock()
        renew_in_children(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


def renew_in_children(thing: Renewable) -> None:
    """Has `thing.renew` called in every child that is forked while `thing` lives."""
    _renewables.add(thing)


def _renew() -> None:
    for thing in list(_renewables):
        thing.renew()


if hasattr(os, "register_at_fork"):  # where it is missing, nothing forks
    os.register_at_fork(after_in_child=_renew)
