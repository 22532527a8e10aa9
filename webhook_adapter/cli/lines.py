"""JSON Lines as events: reading, and saying what is wrong with which line.

Rules of this module: a line is checked in full before anything is done with it, by the same rules that accept it
later. It reads and judges; it sends nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from typing import TYPE_CHECKING

import attrs

from webhook_adapter import PayloadTooLargeError
from webhook_adapter.store import NewMessage

if TYPE_CHECKING:
    from webhook_adapter.model import JsonValue

__all__ = ["Line", "LineError", "Reading"]


class LineError(ValueError):
    """A line that is no event; the message names the line."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"line {number}: {why}")
        self.number = number


@attrs.frozen(kw_only=True)
class Line:
    """One event, as a line described it."""

    number: int
    event_type: str
    data: JsonValue
    idempotency_key: str | None = None
    ordering_key: str | None = None
    occurred_at: float | None = None


@attrs.frozen(kw_only=True)
class Reading:
    """How lines are read.

    Attributes:
        default_type: the event type of lines that have none.
        key_field: the field of a line, or else of its data, whose value is the idempotency key.
        max_bytes: the largest message.
    """

    default_type: str | None = None
    key_field: str | None = None
    max_bytes: int

    def parse(self, raw: bytes, number: int) -> Line | None:
        """Return the event of a line, or None if it is blank.

        Raises:
            LineError: it is no event.
        """
        if not raw.strip():
            return None
        try:
            return self._event(json.loads(raw, parse_constant=_refuse), number)
        except UnicodeDecodeError:
            raise LineError(number, "it is not UTF-8") from None
        except RecursionError:
            raise LineError(number, "it is nested too deeply") from None
        except json.JSONDecodeError as exc:
            raise LineError(number, f"it is no JSON: {exc.msg} at column {exc.colno}") from None
        except ValueError as exc:
            raise LineError(number, str(exc)) from None

    def _event(self, parsed: object, number: int) -> Line:
        if not isinstance(parsed, dict):
            raise ValueError("it is no JSON object")
        if "type" in parsed and "event_type" in parsed and parsed["type"] != parsed["event_type"]:
            raise ValueError("its type and event_type differ")
        event_type = parsed.get("type", parsed.get("event_type", self.default_type))
        if event_type is None:
            raise ValueError('it has no "type", and --type was not given')
        if "data" not in parsed:
            raise ValueError('it has no "data"')
        line = Line(
            number=number,
            event_type=event_type,
            data=parsed["data"],
            idempotency_key=self._key(parsed),
            ordering_key=_text(parsed, "ordering_key"),
            occurred_at=_instant(parsed.get("occurred_at")),
        )
        self._check(line)
        return line

    def _key(self, parsed: dict[str, object]) -> str | None:
        if self.key_field is None:
            return _text(parsed, "idempotency_key")
        data = parsed["data"]
        value = parsed.get(self.key_field)
        if value is None and isinstance(data, dict):
            value = data.get(self.key_field)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"its {self.key_field!r}, the idempotency key, is no text or whole number")
        return str(value)

    def _check(self, line: Line) -> None:
        new = NewMessage.of(
            line.event_type,
            line.data,
            occurred_at=time.time() if line.occurred_at is None else line.occurred_at,
            idempotency_key=line.idempotency_key,
            ordering_key=line.ordering_key,
        )
        if len(new.body) > self.max_bytes:
            raise PayloadTooLargeError(f"it makes a message of {len(new.body)} bytes, more than {self.max_bytes}")


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _text(parsed: dict[str, object], name: str) -> str | None:
    value = parsed.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its {name!r} is no text")
    return value


def _instant(value: object) -> float | None:
    """Return Unix seconds from Unix seconds or ISO 8601, which without an offset is in UTC."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return (moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)).timestamp()
    raise ValueError("its 'occurred_at' is neither Unix seconds nor ISO 8601")
