"""What a coalescer holds: when each entry is ripe, and which goes first; how it merges is in test_coalescing."""

from __future__ import annotations

from resilience.machines.holding import Holding


def test_entry_is_ripe_at_its_very_instant() -> None:
    """Not a nanosecond before; until then it waits for its own key alone."""
    holding: Holding[str, int] = Holding(levels=1, max_keys=3)
    holding.hold("a", 1, 0, ripe_at=7)
    entry = holding.get("a")
    assert entry is not None
    assert (entry.ripe, holding.next_ripe_at(), holding.head()) == (False, 7, None)
    holding.ripen(6)
    assert (entry.ripe, holding.next_ripe_at(), holding.head()) == (False, 7, None)
    holding.ripen(7)
    assert (entry.ripe, holding.next_ripe_at(), holding.head()) == (True, None, entry)
    holding.postpone(entry, 9)
    assert (entry.ripe, holding.next_ripe_at(), holding.head()) == (False, 9, None)


def test_what_is_ripe_at_one_instant_goes_in_the_order_in_which_it_came() -> None:
    """And what is ripe sooner goes before that, whenever it came."""
    holding: Holding[str, int] = Holding(levels=1, max_keys=4)
    for key, ripe_at in (("a", 5), ("b", 5), ("c", 5), ("d", 4)):
        holding.hold(key, 1, 0, ripe_at)
    holding.ripen(5)
    gone = []
    while (entry := holding.head()) is not None:
        gone.append(entry.key)
        holding.remove(entry)
    assert gone == ["d", "a", "b", "c"]
