"""stamina, as its documentation shows it: the decorator `retry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stamina import retry

from benchmarks.conformance.library import Library

if TYPE_CHECKING:
    from benchmarks.conformance.library import Decorator, PlainDecorator


class Stamina(Library):
    def retry(self, *, attempts: int) -> Decorator:
        return retry(
            on=Exception,
            attempts=attempts,
            timeout=None,
            wait_initial=1.0,
            wait_max=60.0,
            wait_jitter=0,
            wait_exp_base=2,
        )

    def plain_retry(self, *, attempts: int) -> PlainDecorator:
        return retry(on=Exception, attempts=attempts, timeout=None, wait_initial=0, wait_max=0, wait_jitter=0)


LIBRARY = Stamina()
