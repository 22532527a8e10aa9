"""SIGKILL at random points: what was told to be durable is there, and nothing is half done."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.adapter.store.support import claim
from webhook_adapter.model import DeliveryState
from webhook_adapter.store import Store

PROGRAM = Path(__file__).with_name("crashing.py")
ROOT = PROGRAM.parents[3]
ROUNDS = 6


def run_and_kill(path: Path, seed: int, words: int, *how: str) -> tuple[set[str], set[str]]:
    """Run the program, kill it after it has said so many words, and return what it said was accepted and recorded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(path), str(seed), *how], stdout=subprocess.PIPE, text=True, env=environment
    )
    said: list[list[str]] = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.split())
            if len(said) == words:
                process.send_signal(signal.SIGKILL)
        # What is left in the pipe was written before the kill: it was read above, up to the end of the file.
    assert process.returncode == -signal.SIGKILL
    # A line may have been cut by the kill; it tells nothing then.
    whole = [words_ for words_ in said if len(words_) == 2 and len(words_[1]) == 30]
    return {name for word, name in whole if word == "accepted"}, {name for word, name in whole if word == "recorded"}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_was_durable_survives_kill_9(path: Path) -> None:
    """WH1, WH2, F1–F5: over several kills every acknowledged message and outcome is there, and the tables are whole."""
    dice = random.Random(20_240_817)
    accepted: set[str] = set()
    recorded: set[str] = set()
    for seed in range(ROUNDS):
        new_accepted, new_recorded = run_and_kill(path, seed, dice.randrange(20, 400))
        accepted |= new_accepted
        recorded |= new_recorded
    assert len(accepted) > 50
    assert len(recorded) > 5
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        assert accepted <= {row[0] for row in raw.execute("SELECT id FROM webhook_messages")}
        assert recorded <= {row[0] for row in raw.execute("SELECT id FROM webhook_attempts")}
        # Fan-out, attempts and counters were written with what they belong to, or not at all.
        fans = raw.execute("SELECT count(*) FROM webhook_deliveries GROUP BY message_id").fetchall()
        assert set(fans) == {(2,)}
        assert len(fans) == raw.execute("SELECT count(*) FROM webhook_messages").fetchone()[0]
        assert raw.execute(
            "SELECT count(*) FROM webhook_deliveries AS d"
            " WHERE attempts <> (SELECT count(*) FROM webhook_attempts AS a WHERE a.delivery_id = d.id)"
        ).fetchone() == (0,)
        counts = dict(raw.execute("SELECT name, value FROM webhook_counts").fetchall())
        states = dict(raw.execute("SELECT state, count(*) FROM webhook_deliveries GROUP BY state").fetchall())
        assert {state.value: counts.get(state.value, 0) for state in DeliveryState} == {
            state.value: states.get(state.value, 0) for state in DeliveryState
        }
        free = raw.execute(
            "SELECT count(*) FROM webhook_deliveries WHERE endpoint_id = 'ep_2' AND finished_at IS NULL AND NOT held"
        ).fetchone()
        assert free == (1,)
        later = raw.execute("SELECT max(lease_until) FROM webhook_deliveries").fetchone()[0] + 1.0
    store = Store.open(path)
    try:
        leased = (await store.statistics()).leased
        assert leased > 0
        assert await store.recover_leases(now=later) == leased
        assert await claim(store, now=later, limit=1)
    finally:
        store.close()


def test_telling_before_the_commit_is_caught(path: Path) -> None:
    """A mutant that answers before its commit loses what it has told."""
    # "ready", and the first message: how many come in the same commit is up to the machine.
    accepted, _ = run_and_kill(path, 0, 2, "too-early")
    assert accepted
    with closing(sqlite3.connect(path)) as raw:
        assert not accepted & {row[0] for row in raw.execute("SELECT id FROM webhook_messages")}
