"""Virtual time on a real server: scripts that read it from a key, and mutants of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import Phase, settings

from resilience.redis.link import Script

if TYPE_CHECKING:
    from tests.resilience.redis.unreliable import Client

#: In the middle of 2026, in microseconds: the numbers are as large as they really are.
START = 1_781_000_000_000_000
#: How much longer keys stay, in milliseconds.
LONGER = 3_600_000

#: For a law with a real server in every step.
LAW = settings(max_examples=40, database=None, report_multiple_bugs=False)
#: The same for mutants: finding is enough.
HUNT = settings(LAW, max_examples=500, derandomize=True, phases=[Phase.explicit, Phase.generate])


class ServerTime:
    """What the server's clock shows, for scripts that are told to look here."""

    def __init__(self, client: Client, prefix: str) -> None:
        self.client = client
        self._key = f"{prefix}:time"
        self.now: int = START
        self.set(START)

    def set(self, now: int) -> None:
        """Show another time, later or earlier, in microseconds."""
        self.now = now
        seconds, microseconds = divmod(now, 1_000_000)
        self.client.hset(self._key, mapping={"s": seconds, "us": microseconds})

    def advance(self, microseconds: int) -> None:
        """Move on, or back."""
        self.set(self.now + microseconds)

    def virtual(self, script: Script) -> Script:
        """Return the same script by this time; its keys stay for an hour longer, as they go by real time."""
        timed = mutant(script, "redis.call('TIME')", f"redis.call('HMGET', '{self._key}', 's', 'us')")
        return mutant(timed, "return string.format('%.0f', ", f"return string.format('%.0f', {LONGER} + ")

    def run(self, script: Script, key: str | tuple[str, ...], *args: object) -> list[int]:
        """Run a virtual script."""
        keys = (key,) if isinstance(key, str) else key
        return [int(value) for value in self.client.eval(script.source, len(keys), *keys, *map(str, args))]


def mutant(script: Script, old: str, new: str) -> Script:
    """Return a script in which something, which is there once, is something else."""
    assert script.source.count(old) == 1, old
    return Script(script.source.replace(old, new))
