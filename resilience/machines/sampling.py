"""One of every n, exactly, without a rhythm: what passes stands for n.

Theory of operation. Events fall into runs of n. In each run exactly one passes, at a place that is drawn when the run
begins. So of any k events between floor(k / n) and ceil(k / n) pass, and no source that sends in step with the runs
is favoured, as it would be if every n-th passed.
"""

from __future__ import annotations

__all__ = ["Sampler"]


class Sampler:
    """Pass one of every `one_in`; not locked."""

    __slots__ = ("_chosen", "_place", "one_in")

    def __init__(self, one_in: int) -> None:
        self.one_in: int = one_in
        self._place = 0
        self._chosen = 0

    @property
    def between_runs(self) -> bool:
        """Whether the next one is the first of a run, as with a sampler that is new."""
        return not self._place

    def passes(self, u: float) -> bool:
        """Return whether this one passes; `u` in [0, 1) is the place in its run, if it is the first of one."""
        place = self._place
        if not place:
            self._chosen = int(u * self.one_in)
        self._place = (place + 1) % self.one_in
        return place == self._chosen
