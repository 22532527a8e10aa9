"""Policy: several layers as one.

Rules of this module: the first layer is the outermost. Neighbouring guards share one coroutine frame. A Policy is
itself a layer: nested, it is as if its layers were written where it stands. It is the only module that knows more than
one layer, and it knows them by their kind alone.

What is plainly senseless is refused; an order that rarely means what was meant is warned of. Both judge only what is
written side by side: whoever nests one policy in another has said what they mean.
"""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING

import attrs

from resilience.layer import Layer, LayerKind
from resilience.machines.checks import string

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilience.describing import Description
    from resilience.layer import Guard, Strategy

__all__ = ["Policy", "PolicyWarning"]


class PolicyWarning(UserWarning):
    """The layers of a Policy stand in an order that rarely means what was meant."""


class Policy(Layer):
    """Compose layers; the first is the outermost.

    `Policy(Retry(3), breaker)` makes up to three calls, each counted by the breaker. `Policy(breaker, Retry(3))` tells
    the breaker one outcome for up to three attempts, and warns, as that is rarely meant; `Policy(breaker,
    Policy(Retry(3)))` says that it is.

    Args:
        layers: guards, strategies and other policies; none at all is the identity.
        name: what descriptions call it.

    Raises:
        ValueError: something is not a layer, a layer is there twice (it would wait for itself), or two Retry layers
            multiply each other; separate policies nest as written.

    Warns:
        PolicyWarning: the order rarely means what was meant. `describe()` tells the same.

    """

    __slots__ = ("_parts", "_warnings", "layers", "name")

    kind = LayerKind.POLICY

    def __init__(self, *layers: Layer, name: str = "") -> None:
        for layer in layers:
            if not isinstance(layer, Layer):
                msg = f"layers must be guards, strategies and policies, not {layer!r}"
                raise ValueError(msg)
        if sum(layer.kind is LayerKind.RETRY for layer in layers) > 1:
            msg = "layers must hold at most one Retry: two multiply their attempts; nest policies if that is meant"
            raise ValueError(msg)
        parts: list[Guard | Strategy] = [part for layer in layers for part in layer.parts]
        for part in parts:
            if sum(other is part for other in parts) > 1:
                msg = f"layers must hold each layer once, but {part!r} is there twice"
                raise ValueError(msg)
        self.layers: tuple[Layer, ...] = layers
        self.name: str = string("name", name)
        self._parts = tuple(parts)
        self._warnings = tuple(_doubts(layers))
        for doubt in self._warnings:
            warnings.warn(f"{doubt}; nest policies if that is meant", PolicyWarning, stacklevel=2)

    @property
    def parts(self) -> tuple[Guard | Strategy, ...]:
        """The guards and strategies inside, outermost first, those of nested policies included."""
        return self._parts

    def describe(self) -> Description:
        """Return the composition as data, with what is doubtful about it; as text with `str()`. Not a checkpoint."""
        layers = tuple(layer.describe() for layer in self.layers)
        return attrs.evolve(super().describe(), layers=layers, warnings=self._warnings)

    def __repr__(self) -> str:
        return f"Policy({', '.join(map(repr, self.layers))})"


# A nested policy has been judged by itself, a layer of a user's own may only watch, and one chaos adds to another.
_FINE_INSIDE_CHAOS = (LayerKind.POLICY, LayerKind.OTHER, LayerKind.CHAOS)


def _doubts(layers: tuple[Layer, ...]) -> Iterator[str]:
    """Yield what is doubtful about an order, a sentence for each pair of layers."""
    for (outer_at, outer), (inner_at, inner) in itertools.combinations(enumerate(layers), 2):
        doubt = _doubt(outer, inner, between=layers[outer_at + 1 : inner_at], inside=layers[inner_at + 1 :])
        if doubt is not None:
            yield f"{_title(outer)} outside {_title(inner)}: {doubt}"


def _doubt(outer: Layer, inner: Layer, *, between: tuple[Layer, ...], inside: tuple[Layer, ...]) -> str | None:
    match outer.kind, inner.kind:
        case LayerKind.CIRCUIT_BREAKER, LayerKind.RETRY if not _has(LayerKind.CIRCUIT_BREAKER, inside):
            return "it hears one outcome for all the attempts, and stops none of them when the callee is down"
        case LayerKind.ADAPTIVE_LIMITER, LayerKind.RETRY:
            return "it takes the delays between the attempts for the callee's latency"
        case ((LayerKind.CIRCUIT_BREAKER | LayerKind.RETRY), LayerKind.FALLBACK) if _falls_back_from_all(inner):
            return "it never sees a failure, since the fallback has taken its place"
        case ((LayerKind.TIMEOUT | LayerKind.DEADLINE), LayerKind.TIMEOUT) if _is_no_longer(outer, inner):
            # Of two that begin together the outer one is first, if only by the time it takes to get to the inner one.
            again = ", so that nothing that took too long is tried again" if _has(LayerKind.RETRY, between) else ""
            return f"the time is over before the inner one can end anything{again}"
        case LayerKind.CHAOS, kind if not between and kind not in _FINE_INSIDE_CHAOS:
            return "the inner one never hears of what it injects"
        case _:
            return None


def _has(kind: LayerKind, layers: tuple[Layer, ...]) -> bool:
    return any(layer.kind is kind for layer in layers)


def _falls_back_from_all(fallback: Layer) -> bool:
    return getattr(fallback, "on", None) in (Exception, (Exception,))


def _is_no_longer(outer: Layer, inner: Layer) -> bool:
    limits = getattr(outer, "seconds", None), getattr(inner, "seconds", None)
    match limits:
        case (int() | float()) as whole, (int() | float()) as part:
            return whole <= part
        case _:
            return False


def _title(layer: Layer) -> str:
    name = getattr(layer, "name", "")
    return f"{type(layer).__name__} {name!r}" if name else type(layer).__name__
