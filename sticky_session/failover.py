"""Slots that have been without a worker for too long: others stand in for them until they are back."""

from __future__ import annotations

from typing import Any

from sticky_session.slots import Table


class Failover:
    """The listener's view of which slots have failed.

    :param workers: how many slots the ring has
    :param seconds: how long a slot may be empty
    :ivar failed: the slots that others stand in for; never all of them
    :ivar any_empty: whether there is anything to look for
    """

    def __init__(self, table: Table, workers: int, seconds: float, log: Any) -> None:
        self._table = table
        self._workers = workers
        self._seconds = seconds
        self._log = log
        # As the listener before has left it.
        self.failed = table.failed(workers)
        self.any_empty = True
        # The last time that no slot had a worker.
        self._none_until = 0.0

    def look(self, now: float) -> bool:
        """Look at the slots.

        :returns: whether others have failed now
        """
        table = self._table
        empty = [slot for slot in range(self._workers) if not table.holder(slot)]
        self.any_empty = bool(empty)
        if len(empty) == self._workers:
            # Nobody could stand in. When all boot, the first to be ready must not get everybody's clients.
            self._none_until = now
            return False
        failed = frozenset(
            slot
            for slot in empty
            if slot in self.failed or now - max(table.empty_since(slot), self._none_until) > self._seconds
        )
        if failed == self.failed:
            return False
        former, self.failed = self.failed, failed
        # Before it is said: whoever reads that can count on it.
        table.set_failed(failed, self._workers)
        for slot in sorted(failed - former):
            self._log.warning("Slot %s is empty for more than %g s: its clients go to other slots", slot, self._seconds)
        for slot in sorted(former - failed):
            self._log.info("Slot %s is back", slot)
        return True
