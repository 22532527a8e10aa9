"""Migrations: how an older database becomes the present schema.

Rules of this module: a table holds the version. A new database is made as the present schema has it; an older one goes
through a step for each version, all in one transaction: a process killed half way leaves the old version whole. A newer
one is refused and left as it is. A step is never changed once it has been released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import sqlalchemy as sa

from webhook_adapter.store import schema
from webhook_adapter.store.errors import DatabaseTooNewError

__all__ = ["STEPS", "migrate"]

Step: TypeAlias = Callable[[sa.Connection], None]

STEPS: Mapping[int, Step] = MappingProxyType({})
"""By the version that a step starts from, what leads to the next."""


def migrate(
    connection: sa.Connection, *, where: str, target: int = schema.VERSION, steps: Mapping[int, Step] = STEPS
) -> None:
    """Bring the database to the `target` version, inside the transaction of `connection`.

    Args:
        connection: in a transaction that holds the write lock.
        where: the database's name, for the error.
        target: the version to reach.
        steps: as in `STEPS`.

    Raises:
        DatabaseTooNewError: its version is above `target`.
    """
    version = _version(connection)
    if version is None:
        schema.metadata.create_all(connection)
        connection.execute(sa.insert(schema.counts).values(name="endpoint_revision", value=0))
        connection.execute(sa.insert(schema.versions).values(version=target))
        return
    if version > target:
        raise DatabaseTooNewError(
            f"the database {where} was written by a newer version: its schema is {version}, this code knows {target}"
        )
    for start in range(version, target):
        steps[start](connection)
    if version < target:
        connection.execute(sa.update(schema.versions).values(version=target))


def _version(connection: sa.Connection) -> int | None:
    if not sa.inspect(connection).has_table(schema.versions.name):
        return None
    found: int | None = connection.execute(sa.select(schema.versions.c.version)).scalar()
    return found
