"""What a layer is, told as data and as text.

Rules of this module: a description is a snapshot of plain values, taken when it is asked for; it holds no layer and
keeps none alive. Settings are what a layer shows under the name of its argument; clocks and dice are left out.

It knows layers by their attributes alone.
"""

from __future__ import annotations

import enum
import inspect
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Description", "LayerKind", "settings_of"]


class LayerKind(enum.Enum):
    """What a layer is for; by it a Policy judges the order of its layers without importing them."""

    RATE_LIMITER = "rate limiter"
    CIRCUIT_BREAKER = "circuit breaker"
    STORM_GUARD = "storm guard"
    BULKHEAD = "bulkhead"
    ADAPTIVE_LIMITER = "adaptive limiter"
    RETRY = "retry"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    FALLBACK = "fallback"
    HEDGE = "hedge"
    CHAOS = "chaos"
    POLICY = "policy"
    OTHER = "other"


def _read_only(settings: Mapping[str, object]) -> Mapping[str, object]:
    return MappingProxyType(dict(settings))


@attrs.frozen(kw_only=True)
class Description:
    """What a layer is, as data; `str()` gives it as text, a line for each layer, the outermost first.

    `type` is the name of its class; `settings` are its positional arguments, and those of its keyword arguments that
    differ from their defaults; `layers` and `warnings` are a Policy's.
    """

    type: str
    kind: LayerKind
    name: str = ""
    settings: Mapping[str, object] = attrs.field(factory=dict, converter=_read_only, hash=False)
    layers: tuple[Description, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(_lines(self, ""))


def _lines(description: Description, margin: str) -> Iterator[str]:
    settings = ", ".join(f"{name}={_shown(value)}" for name, value in description.settings.items())
    name = f" {description.name!r}" if description.name else ""
    yield f"{margin}{description.type}{f'({settings})' if settings else ''}{name}"
    for layer in description.layers:
        yield from _lines(layer, f"{margin}  ")
    for warning in description.warnings:
        yield f"{margin}  ! {warning}"


def _shown(value: object) -> str:
    """Return a value as it would be written; a function has no better text than its name."""
    return getattr(value, "__qualname__", None) or repr(value)


def settings_of(layer: object) -> dict[str, object]:
    """Return the arguments of a layer's class that the layer shows as attributes of the same name."""
    settings: dict[str, object] = {}
    for argument in inspect.signature(type(layer)).parameters.values():
        value = getattr(layer, argument.name, inspect.Parameter.empty)
        if value is inspect.Parameter.empty or inspect.ismethod(value) or argument.name in _LEFT_OUT:
            continue
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY or value != argument.default:
            settings[argument.name] = value
    return settings


_LEFT_OUT = frozenset({"clock", "layers", "name", "random"})
