"""Policy: several layers as one.

Rules of this module: the first layer is the outermost. Neighbouring guards share one coroutine frame. A Policy is
itself a layer: nested, it is as if its layers were written where it stands. It is the only module that knows more than
one layer, and it knows them by their kind alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.layer import Layer, LayerKind
from resilience.machines.checks import string

if TYPE_CHECKING:
    from resilience.layer import Guard, Strategy

__all__ = ["Policy"]


class Policy(Layer):
    """Compose layers; the first is the outermost.

    `Policy(Retry(3), breaker)` makes up to three calls, each counted by the breaker; `Policy(breaker, Retry(3))` tells
    the breaker one outcome for up to three attempts.

    Args:
        layers: guards, strategies and other policies; none at all is the identity.
        name: what descriptions call it.

    Raises:
        ValueError: something is not a layer, a layer is there twice (it would wait for itself), or two Retry layers
            multiply each other; separate policies nest as written.

    """

    __slots__ = ("_parts", "layers", "name")

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
        self.layers = layers
        self.name = string("name", name)
        self._parts = tuple(parts)

    @property
    def parts(self) -> tuple[Guard | Strategy, ...]:
        """The guards and strategies inside, outermost first, those of nested policies included."""
        return self._parts

    def __repr__(self) -> str:
        return f"Policy({', '.join(map(repr, self.layers))})"
