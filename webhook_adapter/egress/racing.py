"""Connecting to the first address that answers.

Theory of operation. Addresses are tried in their order, each a little after the one before or as soon as that has
failed, and the first connection wins (RFC 8305, without its sorting: the resolver has done that). So an address that
swallows packets costs a quarter of a second, not the attempt.

Rules of this module: a connection is either returned or closed. It knows no sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["first_to_answer"]

C = TypeVar("C")

# What RFC 8305 recommends.
_NEXT_ADDRESS_SECONDS = 0.25


async def first_to_answer(
    addresses: Sequence[str],
    connect: Callable[[str], Awaitable[C]],
    close: Callable[[C], Awaitable[object]],
    failures: tuple[type[Exception], ...],
) -> C:
    """Return what `connect` returns for the first address for which it does. A checkpoint.

    Args:
        addresses: at least one.
        connect: makes a connection; one of `failures` lets the next address have its turn.
        close: closes a connection that came too late.
        failures: what `connect` raises for an address that does not answer; the last one is raised if none does.
            Whatever else it raises ends the race at once, and is raised as it is.
    """
    if len(addresses) == 1:
        return await connect(addresses[0])
    won: list[C] = []
    errors: list[Exception] = []
    fatal: list[Exception] = []

    async def attempt(address: str, over: anyio.Event) -> None:
        try:
            connection = await connect(address)
        except failures as exc:
            errors.append(exc)
            over.set()
            return
        except Exception as exc:  # noqa: BLE001 - a task group would wrap it up; it is raised below
            fatal.append(exc)
            group.cancel_scope.cancel()
            return
        # No checkpoint from here on: a connection is either handed over or closed.
        won.append(connection)
        group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            for address in addresses:
                over = anyio.Event()
                group.start_soon(attempt, address, over)
                with anyio.move_on_after(_NEXT_ADDRESS_SECONDS):
                    await over.wait()
        if fatal or not won:
            raise (fatal or errors)[-1]
        winner = won.pop(0)
    finally:
        with anyio.CancelScope(shield=True):
            for connection in won:
                await close(connection)
    return winner
