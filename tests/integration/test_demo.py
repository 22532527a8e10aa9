"""`make demo`, held for real with a smaller storm: three processes, real sockets, real time, a real SIGKILL."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapter.programs import environment, webhook_adapter

EVENTS = 400
REAL = 24


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The figures of one demonstration, as it prints them for programs."""
    done = webhook_adapter("demo", "--events", str(EVENTS), "--json", cwd=tmp_path_factory.mktemp("demo"))
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_nothing_is_lost_and_everybody_agrees(account: dict[str, object]) -> None:
    """What was published was accepted, what was accepted arrived, and store and receivers say the same."""
    assert account["published"] == account["accepted"] == EVENTS + REAL
    # Everything goes to the healthy one; the storm's tenths go to two others, the real events to all four.
    assert account["deliveries"] == account["delivered"] == EVENTS + 2 * EVENTS // 10 + 4 * REAL
    assert (account["lost"], account["disagreements"], account["unverified"]) == (0, 0, 0)


def test_what_was_to_be_seen_has_happened(account: dict[str, object]) -> None:
    """The process was killed, the dead receiver's circuit opened and closed, and its deliveries came back to life."""
    assert account["kills"] == 1
    transitions = account["breaker_transitions"]
    assert isinstance(transitions, dict)
    assert set(transitions) >= {"closed -> open", "open -> half_open", "half_open -> open", "half_open -> closed"}
    (dead,) = _endpoints(account, "dead")
    assert (dead["dead"], dead["delivered"], dead["lost"]) == (REAL, REAL, 0)
    revived, died = account["revived"], account["dead"]
    assert isinstance(revived, int)
    assert isinstance(died, int)
    assert revived == died >= REAL


def test_the_duplicates_are_no_more_than_the_kill_explains(account: dict[str, object]) -> None:
    """What was in flight when the process was killed may arrive twice, and nothing else does (WH15)."""
    duplicates = account["duplicates"]
    assert isinstance(duplicates, int)
    assert 0 <= duplicates <= 100


def test_the_account_is_printed_for_people(tmp_path: Path) -> None:
    """Without --json it tells what happens while it happens, and closes with every figure of the account."""
    done = webhook_adapter("demo", "--events", str(EVENTS), cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    told = ("real events", f"a storm of {EVENTS} events", "killed with SIGKILL", "running again", "they are retried")
    assert all(sentence in done.stdout for sentence in told)
    assert re.search(r"delivered: healthy \d+/424, slow \d+/\d+, flaky \d+/\d+, dead \d+/24", done.stdout)
    figures = re.findall(r"^ ([a-z][a-z0-9, ]+?) {2,}(\S.*?) {2,}", done.stdout, re.MULTILINE)
    shown = dict(figures)
    assert shown["accepted"] == f"{EVENTS + REAL} of {EVENTS + REAL}"
    assert shown["lost"] == "0"
    assert set(shown) >= {
        "accepted",
        "delivered",
        "retried",
        "deferred",
        "dead, then revived",
        "breaker transitions",
        "limiter hits",
        "storm guard hits",
        "latency p50, p99",
        "processes killed",
        "duplicates",
        "bad signatures",
        "disagreements",
        "lost",
    }
    assert re.search(r"Nothing was lost\. \d+\.\d s in all\.", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_bars(tmp_path: Path) -> None:
    """On a terminal progress is drawn, and Ctrl-C ends it at once, with no traceback, no process and no folder left."""
    leader, follower = os.openpty()
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "webhook_adapter", "demo"],
        cwd=tmp_path,
        env=environment(TMPDIR=str(folder), TERM="xterm"),
        stdout=follower,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(follower)
    shown = b""
    try:
        while b"healthy" not in shown or b"/10024" not in shown:
            shown += os.read(leader, 65_536)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        # The end of it is read as well: a terminal that nobody reads would hold up who writes to it.
        while chunk := _read(leader):
            shown += chunk
        errors = process.stderr.read()
        assert (process.wait(20.0), errors) == (130, b"")
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        assert process.stderr is not None
        process.stderr.close()
    assert b"a storm of 10,000 events" in shown
    assert list(folder.iterdir()) == []
    assert _processes_with(str(folder)) == []


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:
        return b""  # on Linux this is how the other side of a terminal says that it has closed


def _processes_with(text: str) -> list[str]:
    """Return the command lines of processes that mention a text, where the system tells them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if text in words:
            found.append(words)
    return found


def _endpoints(account: dict[str, object], name: str) -> list[dict[str, object]]:
    endpoints = account["endpoints"]
    assert isinstance(endpoints, list)
    return [endpoint for endpoint in endpoints if endpoint["name"] == name]
