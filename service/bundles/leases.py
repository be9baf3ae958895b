"""Who scores on a bundle right now.

A scorer takes a lease for every request and gives it back when the scores are there. Leases are counted on
the event loop only, so there is no lock. Invariant: what waits for a bundle to be free is called once,
when the last lease is given back.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Leases:
    """Leases of one bundle; a context manager that holds one."""

    __slots__ = ("_when_free", "count")

    def __init__(self) -> None:
        self.count = 0
        self._when_free: Callable[[], None] | None = None

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.count -= 1
        if self._when_free is not None and not self.count:
            call, self._when_free = self._when_free, None
            call()

    def when_free(self, call: Callable[[], None]) -> None:
        """Call once nobody holds a lease: now, or at the end of the last one.

        Args:
            call: Must not raise; it runs within somebody's request. A second one replaces the first.
        """
        if self.count:
            self._when_free = call
        else:
            call()


__all__ = ["Leases"]
