"""Draw the pictures of states in docs/images: `python -m tools.diagrams`.

The transitions of the breaker are read from the machine that makes them; a test keeps pictures and pages up to date.
Plain SVG, so that a page shows it wherever it is read, and fetches nothing.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import attrs

from resilience.machines.breaker import TRANSITIONS

__all__ = ["DIAGRAMS", "Diagram", "Edge", "Node", "drawn", "edge_table", "main"]

IMAGES = Path(__file__).parent.parent / "docs" / "images"
HALF_WIDTH, HALF_HEIGHT = 62, 22
BEND = 26
# Where on its edge the number stands, as a share of the way.
AT = 0.38


@attrs.frozen
class Node:
    """A state, and where its box is centred."""

    name: str
    x: int
    y: int


@attrs.frozen
class Edge:
    """A transition, and why it happens."""

    start: str
    end: str
    label: str


@attrs.frozen
class Diagram:
    """States and the ways between them; the first state is where it all begins."""

    title: str
    width: int
    height: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


DIAGRAMS = {
    "breaker": Diagram(
        "The states of a circuit breaker",
        640,
        370,
        (
            Node("closed", 90, 200),
            Node("open", 550, 200),
            Node("half_open", 320, 330),
            Node("isolated", 320, 40),
        ),
        tuple(Edge(old.value, new.value, why) for (old, new), why in TRANSITIONS.items()),
    ),
    "storm": Diagram(
        "The states of a storm guard",
        520,
        110,
        (Node("calm", 90, 55), Node("storm", 430, 55)),
        (
            Edge("calm", "storm", "the window is full, and an event is refused"),
            Edge("storm", "calm", "the window has been calm for `hold_for` seconds"),
        ),
    ),
    "limiter": Diagram(
        "What an adaptive limiter is doing",
        520,
        110,
        (Node("adjusting", 90, 55), Node("probing", 430, 55)),
        (
            Edge("adjusting", "probing", "latency is off the baseline for `probe_every` windows, or there is none yet"),
            Edge("probing", "adjusting", "the baseline is measured; the limit is what it was"),
        ),
    ),
    "keyed": Diagram(
        "What becomes of a key",
        520,
        260,
        (Node("not known", 90, 55), Node("awake", 430, 55), Node("asleep", 430, 205)),
        (
            Edge("not known", "awake", "it is asked for, and its guard is made"),
            Edge(
                "awake", "asleep", "nobody holds the guard, `max_awake` others were used later, and something remains"
            ),
            Edge("asleep", "awake", "it is asked for; a guard is made, and goes on from what remains"),
            Edge("awake", "not known", "nobody holds the guard, others were used later, and it is as good as new"),
            Edge("asleep", "not known", "another key needs the room, and by now nothing remains"),
        ),
    ),
    "rate_limiter": Diagram(
        "What becomes of a call at a rate limiter",
        640,
        280,
        (
            Node("asks", 90, 140),
            Node("waits", 320, 140),
            Node("admitted", 550, 40),
            Node("rejected", 550, 240),
            Node("cancelled", 550, 140),
        ),
        (
            Edge("asks", "admitted", "nobody waits, and the bucket holds what it costs"),
            Edge("asks", "waits", "its turn comes within `max_wait`"),
            Edge("asks", "rejected", "its turn would come later than that, or not before the call's deadline"),
            Edge("waits", "admitted", "it is at the head of the queue, and the bucket holds what it costs"),
            Edge(
                "waits",
                "rejected",
                "`update()` has made its turn come too late, or its cost too large, which is a ValueError",
            ),
            Edge("waits", "cancelled", "its task is cancelled: nothing is taken, and those behind it move up"),
        ),
    ),
    "bulkhead": Diagram(
        "What becomes of a call at a bulkhead",
        720,
        280,
        (
            Node("asks", 90, 140),
            Node("waits", 280, 140),
            Node("runs", 470, 40),
            Node("rejected", 470, 240),
            Node("cancelled", 470, 140),
            Node("over", 640, 40),
        ),
        (
            Edge("asks", "runs", "a permit is free"),
            Edge("asks", "waits", "no permit is free, and the queue has room"),
            Edge("asks", "rejected", "the queue has no room either"),
            Edge("waits", "runs", "a permit comes back, and nobody has waited longer"),
            Edge("waits", "rejected", "it has waited for `max_wait`"),
            Edge("waits", "cancelled", "its task is cancelled: those behind it move up"),
            Edge("runs", "over", "it ends, in whatever way, and its permit comes back"),
        ),
    ),
    "retry": Diagram(
        "What becomes of a call under a Retry",
        520,
        260,
        (Node("attempt", 90, 55), Node("delay", 90, 205), Node("returned", 430, 55), Node("raised", 430, 205)),
        (
            Edge(
                "attempt",
                "returned",
                "it ends well; or `on_result` finds fault with its result, and no attempt, time or budget is left",
            ),
            Edge("attempt", "raised", "it raised what is not retried; or no attempt, time or budget is left"),
            Edge("attempt", "delay", "it failed, and an attempt, time and budget are left"),
            Edge("delay", "attempt", "the delay is over"),
            Edge("delay", "raised", "the call is cancelled"),
        ),
    ),
    "timeout": Diagram(
        "What becomes of a call under a Timeout or a Deadline",
        720,
        290,
        (
            Node("begins", 90, 145),
            Node("runs", 280, 145),
            Node("stopping", 470, 145),
            Node("over", 640, 35),
            Node("timed out", 470, 250),
        ),
        (
            Edge("begins", "runs", "there is time left"),
            Edge("begins", "timed out", "the Deadline has passed: the callee is not called"),
            Edge("runs", "over", "it ends in time, or is cancelled from outside"),
            Edge("runs", "stopping", "the time is over, and the callee is cancelled"),
            Edge("stopping", "timed out", "it has ended, its `finally` blocks included"),
            Edge("stopping", "over", "it returns or raises something else all the same, or is cancelled from outside"),
        ),
    ),
    "fallback": Diagram(
        "What becomes of a call under a Fallback",
        640,
        280,
        (Node("call", 90, 140), Node("fallback", 320, 140), Node("returned", 550, 40), Node("raised", 550, 240)),
        (
            Edge("call", "returned", "it ends well"),
            Edge("call", "raised", "it raised what is not among `on`, or it is cancelled"),
            Edge("call", "fallback", "it raised what is among `on`, or `on_result` finds fault with its result"),
            Edge("fallback", "returned", "the answer takes the place of the call's own"),
            Edge("fallback", "raised", "the function that was to give the answer failed, or is cancelled"),
        ),
    ),
    "hedge": Diagram(
        "What becomes of a call under a Hedge",
        640,
        280,
        (Node("one attempt", 90, 140), Node("several", 320, 140), Node("returned", 550, 40), Node("raised", 550, 240)),
        (
            Edge("one attempt", "returned", "it ends well"),
            Edge("one attempt", "raised", "it fails, or is cancelled"),
            Edge("one attempt", "several", "the delay is over, and the budget allows another attempt"),
            Edge("several", "returned", "one ends well: the others are cancelled, and have ended"),
            Edge(
                "several", "raised", "the last one fails; or one with what is not among `on`; or the call is cancelled"
            ),
        ),
    ),
    "policy": Diagram(
        "How a call goes through the layers of a Policy",
        740,
        260,
        (
            Node("Timeout", 90, 55),
            Node("Retry", 280, 55),
            Node("CircuitBreaker", 470, 55),
            Node("RateLimiter", 650, 55),
            Node("Bulkhead", 650, 205),
            Node("callee", 470, 205),
        ),
        (
            Edge("Timeout", "Retry", "a call begins, and so does its time"),
            Edge("Retry", "CircuitBreaker", "an attempt begins"),
            Edge("CircuitBreaker", "RateLimiter", "the circuit is closed, or the attempt is a probe"),
            Edge("RateLimiter", "Bulkhead", "there is a token"),
            Edge("Bulkhead", "callee", "there is a permit"),
            Edge(
                "CircuitBreaker",
                "Retry",
                "the circuit is open; or the limiter or the bulkhead refused, which it ignores",
            ),
            Edge(
                "callee",
                "Retry",
                "it has ended: the permit is back, and the circuit has counted",
            ),
            Edge("Retry", "Timeout", "it is done, well or not; or the time is over, wherever that finds the call"),
        ),
    ),
    "deque": Diagram(
        "The states of a deque",
        520,
        260,
        (Node("open", 90, 55), Node("closed", 430, 55), Node("over", 430, 205)),
        (
            Edge("open", "closed", "`close()`: it takes nothing more, and gives what is left"),
            Edge("open", "over", "`close()`, and there is nothing left"),
            Edge("closed", "over", "the last item is taken"),
        ),
    ),
    "delivery": Diagram(
        "The states of a delivery",
        640,
        340,
        (
            Node("pending", 90, 60),
            Node("leased", 430, 60),
            Node("delivered", 550, 180),
            Node("dead", 430, 290),
            Node("cancelled", 90, 290),
        ),
        (
            Edge("pending", "leased", "it is due, and a worker takes it"),
            Edge("leased", "pending", "the attempt failed and another one is due; or the lease ended, or was released"),
            Edge("leased", "delivered", "the receiver answered 2xx"),
            Edge("leased", "dead", "the last attempt failed, the receiver answered 410, or the time is over"),
            Edge("pending", "dead", "it expired, or its endpoint answered 410 to another"),
            Edge("pending", "cancelled", "its endpoint was deleted"),
            Edge("leased", "cancelled", "its endpoint was deleted meanwhile, and the attempt failed"),
            Edge("dead", "pending", "retried by hand, or replayed"),
            Edge("delivered", "pending", "replayed"),
        ),
    ),
}


def drawn(name: str) -> str:
    """Return the SVG of a diagram."""
    diagram = DIAGRAMS[name]
    places = {node.name: node for node in diagram.nodes}
    both_ways = {(edge.end, edge.start) for edge in diagram.edges}
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {diagram.width} {diagram.height}"'
            f' width="{diagram.width}" height="{diagram.height}" role="img" font-family="sans-serif" font-size="15">'
        ),
        f"<title>{diagram.title}</title>",
        (
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8"'
            ' orient="auto"><path d="M0 0 10 5 0 10z" fill="#44505c"/></marker></defs>'
        ),
        f'<rect width="{diagram.width}" height="{diagram.height}" rx="8" fill="#ffffff"/>',
    ]
    numbers = []
    for number, edge in enumerate(diagram.edges, start=1):
        bend = BEND if (edge.start, edge.end) in both_ways else 0
        path, (x, y) = _curve(places[edge.start], places[edge.end], bend)
        parts.append(f'<path d="{path}" fill="none" stroke="#44505c" stroke-width="1.5" marker-end="url(#tip)"/>')
        numbers.append(
            f'<circle cx="{x}" cy="{y}" r="11" fill="#ffffff" stroke="#44505c"/>'
            f'<text x="{x}" y="{y + 5}" text-anchor="middle" fill="#17202a">{number}</text>'
        )
    parts += numbers
    for index, node in enumerate(diagram.nodes):
        parts.append(
            f'<rect x="{node.x - HALF_WIDTH}" y="{node.y - HALF_HEIGHT}" width="{2 * HALF_WIDTH}"'
            f' height="{2 * HALF_HEIGHT}" rx="10" fill="#e8f1fb" stroke="#1f5f99"'
            f' stroke-width="{2.5 if index == 0 else 1.5}"/>'
            f'<text x="{node.x}" y="{node.y + 5}" text-anchor="middle" fill="#17202a">{node.name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _curve(start: Node, end: Node, bend: float) -> tuple[str, tuple[int, int]]:
    """Return the path from box to box, bent to its left, and where its number goes."""
    length = math.hypot(end.x - start.x, end.y - start.y)
    middle = (
        (start.x + end.x) / 2 + 2 * bend * (end.y - start.y) / length,
        (start.y + end.y) / 2 - 2 * bend * (end.x - start.x) / length,
    )
    first, last = _border(start, middle), _border(end, middle)
    x, y = (
        round((1 - AT) ** 2 * a + 2 * AT * (1 - AT) * b + AT**2 * c)
        for a, b, c in zip(first, middle, last, strict=True)
    )
    x1, y1, x2, y2, x3, y3 = (round(number) for number in (*first, *middle, *last))
    return f"M{x1} {y1}Q{x2} {y2} {x3} {y3}", (x, y)


def _border(node: Node, towards: tuple[float, float]) -> tuple[float, float]:
    """Return the point at which the way from a box's centre leaves the box."""
    dx, dy = towards[0] - node.x, towards[1] - node.y
    share = min(
        HALF_WIDTH / abs(dx) if dx else math.inf,
        HALF_HEIGHT / abs(dy) if dy else math.inf,
    )
    return node.x + dx * share, node.y + dy * share


def edge_table(name: str) -> str:
    """Return the Markdown table that tells what the numbers of a picture mean."""
    rows = [
        f"| {number} | {edge.start} → {edge.end} | {edge.label} |"
        for number, edge in enumerate(DIAGRAMS[name].edges, start=1)
    ]
    return "\n".join(["| | From, to | When |", "|---|---|---|", *rows, ""])


def main() -> int:
    """Write every picture, and print the tables that belong to them."""
    IMAGES.mkdir(exist_ok=True)
    for name in DIAGRAMS:
        (IMAGES / f"{name}.svg").write_text(drawn(name), encoding="utf-8")
        print(edge_table(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
