"""tenacity, as its documentation shows it: the decorator `retry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenacity import retry, stop_after_attempt, wait_exponential

from benchmarks.conformance.library import Library

if TYPE_CHECKING:
    from benchmarks.conformance.library import Decorator, PlainDecorator


class Tenacity(Library):
    def retry(self, *, attempts: int) -> Decorator:
        return retry(stop=stop_after_attempt(attempts), wait=wait_exponential(multiplier=1.0, max=60.0), reraise=True)

    def plain_retry(self, *, attempts: int) -> PlainDecorator:
        return retry(stop=stop_after_attempt(attempts), reraise=True)


LIBRARY = Tenacity()
