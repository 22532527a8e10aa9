"""The command line, run as a program: its arguments, what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import pytest

from tests.adapter.programs import ROOT, environment, webhook_adapter
from webhook_adapter import Settings
from webhook_adapter.cli.flags import SettingFlags
from webhook_adapter.cli.lines import Line, LineError, Reading
from webhook_adapter.cli.output import printable, sentence_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "whsec_" + "A" * 32 + "=" * 0
OTHER_SECRET = "whsec_" + "B" * 32
QUICK = ("--retry-schedule", "0,0.05,0.05,0.05", "--breaker-recovery-timeout", "0.05")
READING = Reading(max_bytes=1_000)


class Listener:
    """A `listen` that runs, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.introduction = self.line()

    def line(self) -> dict[str, object]:
        """Wait for the next line of JSON."""
        assert self.process.stdout is not None
        told: dict[str, object] = json.loads(self.process.stdout.readline())
        return told

    @property
    def url(self) -> str:
        return str(self.introduction["url"])


@contextmanager
def listening(*arguments: str) -> Iterator[Listener]:
    """Run `listen --json` for as long as the block lasts."""
    command = [sys.executable, "-m", "webhook_adapter", "listen", "--json", *arguments]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Listener(process)
        finally:
            process.kill()


def accepted_types(data_dir: Path) -> list[str]:
    """Return the event types in a data directory, in the order of acceptance."""
    with sqlite3.connect(data_dir / "webhooks.sqlite3") as database:
        rows = database.execute("SELECT event_type FROM webhook_messages ORDER BY rowid").fetchall()
    database.close()
    return [kind for (kind,) in rows]


# -- the program ------------------------------------------------------------------------------------------------------


def test_the_version_is_printed(tmp_path: Path) -> None:
    """`--version` answers in one line and ends well."""
    done = webhook_adapter("--version", cwd=tmp_path)

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1


def test_help_names_every_command(tmp_path: Path) -> None:
    """Someone who knows nothing finds the commands."""
    done = webhook_adapter("--help", cwd=tmp_path)

    assert done.returncode == 0
    assert all(name in done.stdout for name in ("demo", "send", "listen"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("bogus",), "bogus"),
        (("send",), "FILE"),
        (("send", "f.jsonl", "--data-dir", "d", "--bogus"), "--bogus"),
        (("send", "f.jsonl", "--data-dir", "d", "--secret", SECRET), "--endpoint"),
        (("send", "f.jsonl", "--data-dir", "d", "--type", "a b"), "--type"),
        (("send", "f.jsonl", "--data-dir", "d", "--endpoint", "https://a.example", "--secret", "x"), "--secret"),
        (("listen", "--port", "x"), "--port"),
        (("listen", "--port", "70000"), "--port"),
        (("listen", "--fail-rate", "1.5"), "fail_rate"),
        (("listen", "--fail-rate", "nan"), "fail_rate"),
        (("listen", "--latency", "-1"), "latency"),
        (("listen", "--status", "99"), "status"),
        (("listen", "--host", "0.0.0.0"), "--host"),
        (("demo", "--events", "0"), "--events"),
    ],
)
def test_wrong_arguments_are_a_usage_error_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    """Exit code 2, one line on standard error that names the argument, nothing on standard output, nothing written."""
    done = webhook_adapter(*arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    """Installed without its extra, the command line says in one sentence what to install."""
    (tmp_path / "cyclopts.py").write_text("raise ModuleNotFoundError('hidden', name='cyclopts')", encoding="utf-8")

    done = webhook_adapter("--version", cwd=tmp_path, env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"))

    assert done.returncode == 1
    assert done.stderr == "The command line needs cyclopts: pip install 'stormguard[cli]'.\n"


def test_a_library_that_is_missing_for_another_reason_is_not_hidden(tmp_path: Path) -> None:
    """Only what the extra brings is explained away; a broken installation shows itself."""
    (tmp_path / "cyclopts.py").write_text("import no_such_module_anywhere", encoding="utf-8")

    done = webhook_adapter("--version", cwd=tmp_path, env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"))

    assert "no_such_module_anywhere" in done.stderr


# -- send -------------------------------------------------------------------------------------------------------------


def test_send_accepts_a_file_in_its_order(tmp_path: Path) -> None:
    """Every line is durable when the command has ended, in a folder with a space too."""
    lines = [{"type": f"order.n{number}", "data": {"number": number}} for number in range(450)]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    done = webhook_adapter("send", "events.jsonl", "--data-dir", "a b", "--json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"accepted": 450, "known": 0, "unrouted": 450}
    assert sorted(accepted_types(tmp_path / "a b")) == sorted(str(line["type"]) for line in lines)


def test_send_delivers_and_listen_verifies(tmp_path: Path) -> None:
    """What is sent with --wait arrives signed at a receiver that verifies it."""
    with listening("--secret", SECRET) as listener:
        done = webhook_adapter(
            "send", "-", "--data-dir", "d", "--endpoint", listener.url, "--secret", SECRET, "--allow-loopback",
            "--wait", "--json", cwd=tmp_path, stdin='{"type": "order.paid", "data": {"order": 7}}\n',
        )  # fmt: skip
        event = listener.line()
        listener.process.send_signal(signal.SIGINT)
        tally = listener.line()
        code = listener.process.wait()

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "accepted": 1, "known": 0, "unrouted": 0, "delivered": 1, "dead": 0, "pending": 0,
    }  # fmt: skip
    assert (event["type"], event["attempt"], event["verified"], event["status"]) == ("order.paid", 1, True, 200)
    assert listener.introduction["secret"] is None
    assert tally == {"tally": {"requests": 1, "messages": 1, "unverified": 0, "answers": {"200": 1}}}
    assert code == 0


def test_send_says_when_a_delivery_is_dead(tmp_path: Path) -> None:
    """A receiver that fails every time costs its attempts, and the exit code says so."""
    with listening("--secret", SECRET, "--status", "500") as listener:
        done = webhook_adapter(
            "send", "-", "--data-dir", "d", "--endpoint", listener.url, "--secret", SECRET, "--allow-loopback",
            "--wait", "--json", *QUICK, cwd=tmp_path, stdin='{"type": "order.paid", "data": 1}',
        )  # fmt: skip
        attempts = [listener.line()["attempt"] for _ in range(4)]

    assert done.returncode == 1
    assert json.loads(done.stdout)["dead"] == 1
    assert attempts == [1, 2, 3, 4]


def test_listen_refuses_what_another_secret_signed(tmp_path: Path) -> None:
    """A signature that does not verify is answered 401, and it is said why."""
    with listening("--secret", OTHER_SECRET) as listener:
        webhook_adapter(
            "send", "-", "--data-dir", "d", "--endpoint", listener.url, "--secret", SECRET, "--allow-loopback",
            "--wait", "--retry-schedule", "0", cwd=tmp_path, stdin='{"type": "order.paid", "data": 1}',
        )  # fmt: skip
        event = listener.line()

    assert (event["verified"], event["status"], event["reason"]) == (False, 401, "no signature matches")


def test_listen_makes_a_secret_and_says_how_to_use_it(tmp_path: Path) -> None:
    """With no secret given there is a new one, and a command that can be copied."""
    command = [sys.executable, "-m", "webhook_adapter", "listen"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(6)]
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()

    assert process.returncode == 0
    assert "http://127.0.0.1:" in told[0]
    assert "whsec_" in told[1]
    assert "--allow-loopback --wait" in told[5]
    assert "0 requests for 0 messages" in rest


def test_sending_again_to_a_new_secret_rotates_it(tmp_path: Path) -> None:
    """The endpoint is registered once; another secret for it is a rotation, and signs at once."""
    with listening("--secret", OTHER_SECRET) as listener:
        for secret in (SECRET, OTHER_SECRET):
            arguments = ("--data-dir", "d", "--endpoint", listener.url, "--secret", secret, "--allow-loopback")
            done = webhook_adapter("send", "-", *arguments, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        webhook_adapter(
            "send", "-", "--data-dir", "d", "--allow-loopback", "--wait",
            cwd=tmp_path, stdin='{"type": "order.paid", "data": 1}',
        )  # fmt: skip
        event = listener.line()

    assert event["verified"] is True


def test_a_bad_line_of_a_file_stops_everything_before_it_begins(tmp_path: Path) -> None:
    """Every bad line is named by its number, nothing is accepted, and no database is made."""
    (tmp_path / "events.jsonl").write_text('{"type": "a", "data": 1}\nnope\n\n{"type": "a b", "data": 1}\n')

    done = webhook_adapter("send", "events.jsonl", "--data-dir", "d", cwd=tmp_path)

    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("line 2: ")
    assert done.stderr.splitlines()[1].startswith("line 4: ")
    assert done.stderr.splitlines()[2] == "2 lines are wrong, so nothing was accepted."
    assert not (tmp_path / "d").exists()


def test_a_bad_line_of_standard_input_stops_there(tmp_path: Path) -> None:
    """What came before it has been accepted, and it is said how much that is."""
    stdin = '{"type": "a", "data": 1}\n{"type": "b", "data": 2}\n{"data": 3}\n{"type": "c", "data": 4}\n'

    done = webhook_adapter("send", "-", "--data-dir", "d", cwd=tmp_path, stdin=stdin)

    assert done.returncode == 1
    assert done.stderr == 'line 3: it has no "type", and --type was not given; 2 lines were accepted.\n'
    assert sorted(accepted_types(tmp_path / "d")) == ["a", "b"]


def test_a_pipe_that_stays_open_is_accepted_as_it_comes(tmp_path: Path) -> None:
    """A line is durable although the pipe has not ended; an interrupt then says how much was accepted."""
    with listening("--secret", SECRET) as listener:
        command = [
            sys.executable, "-m", "webhook_adapter", "send", "-", "--data-dir", "d", "--endpoint", listener.url,
            "--secret", SECRET, "--allow-loopback", "--wait", "--json",
        ]  # fmt: skip
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b'{"type": "order.paid", "data": 1}\n{"type": "ord')
            process.stdin.flush()
            event = listener.line()
            process.send_signal(signal.SIGINT)
            figures = json.loads(process.stdout.read())

    assert event["type"] == "order.paid"
    assert process.returncode == 130
    assert figures["accepted"] == 1


def test_the_same_key_is_the_same_message(tmp_path: Path) -> None:
    """A file that is sent twice is accepted once; a field of the data may be the key."""
    (tmp_path / "events.jsonl").write_text('{"type": "a", "data": {"id": 1}}\n{"type": "a", "data": {"id": 2}}\n')
    arguments = ("send", "events.jsonl", "--data-dir", "d", "--idempotency-key-field", "id", "--json")

    first, second = (json.loads(webhook_adapter(*arguments, cwd=tmp_path).stdout) for _ in range(2))

    assert (first["accepted"], first["known"]) == (2, 0)
    assert (second["accepted"], second["known"]) == (2, 2)
    assert accepted_types(tmp_path / "d") == ["a", "a"]


def test_the_same_key_with_other_data_is_named_by_its_line(tmp_path: Path) -> None:
    """A conflict is an error of its line."""
    stdin = '{"type": "a", "data": 1, "idempotency_key": "k"}\n{"type": "a", "data": 2, "idempotency_key": "k"}\n'
    (tmp_path / "events.jsonl").write_text(stdin)

    done = webhook_adapter("send", "events.jsonl", "--data-dir", "d", cwd=tmp_path)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "idempotency_key 'k'" in done.stderr
    assert done.stderr.endswith("; 1 lines were accepted.\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("missing.jsonl", "--data-dir", "d"), "cannot be read"),
        ((".", "--data-dir", "d"), "cannot be read"),
        (("-", "--data-dir", "file"), "data directory"),
        (("-", "--data-dir", "d", "--lease-for", "nan"), "lease_for"),
        (("-", "--data-dir", "d", "--config", "missing.toml"), "missing.toml"),
        (("-", "--data-dir", "d", "--config", "bad.toml"), "no_such_setting"),
        (("-", "--data-dir", "d", "--endpoint", "http://127.0.0.1:9/"), "https"),
        (("-", "--data-dir", "d", "--endpoint", "https://10.0.0.1/"), "10.0.0.1"),
        (("-", "--data-dir", "corrupt"), "webhooks.sqlite3"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    """Exit code 1 and one line on standard error; never a traceback."""
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "bad.toml").write_text("no_such_setting = 1")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "webhooks.sqlite3").write_bytes(b"this is no database" * 100)

    done = webhook_adapter("send", *arguments, cwd=tmp_path)

    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert told in done.stderr


def test_arguments_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    """The limit that refuses the line tells which source was heard."""
    (tmp_path / "settings.toml").write_text("max_payload_bytes = 10")
    (tmp_path / "events.jsonl").write_text('{"type": "a", "data": 1}')
    send = ("send", "events.jsonl", "--config", "settings.toml")
    heard = environment(WEBHOOK_ADAPTER_MAX_PAYLOAD_BYTES="11", WEBHOOK_ADAPTER_DATA_DIR="from the environment")

    from_file = webhook_adapter(*send, "--data-dir", "d", cwd=tmp_path)
    from_environment = webhook_adapter(*send, cwd=tmp_path, env=heard)
    from_argument = webhook_adapter(*send, "--max-payload-bytes", "1000", cwd=tmp_path, env=heard)

    assert "more than 10." in from_file.stderr
    assert "more than 11." in from_environment.stderr
    assert from_argument.returncode == 0, from_argument.stderr
    assert accepted_types(tmp_path / "from the environment") == ["a"]


def test_every_setting_is_an_argument() -> None:
    """A setting that is added is not forgotten here."""
    settings = {field.name for field in attrs.fields(Settings)} - {"origins"}

    assert {field.name for field in attrs.fields(SettingFlags)} == settings


# -- lines ------------------------------------------------------------------------------------------------------------


def test_a_line_may_say_everything() -> None:
    """Type under either name, keys, and when it occurred, in Unix seconds or ISO 8601."""
    raw = b'{"event_type": "a.b", "data": [1], "idempotency_key": "k", "ordering_key": "o", "occurred_at": %b}'

    line = READING.parse(raw % b"12.5", 3)
    dated = READING.parse(raw % b'"1970-01-01T00:00:12.5"', 3)
    zoned = READING.parse(raw % b'"1970-01-01T01:00:12.5+01:00"', 3)

    expected = Line(
        number=3, event_type="a.b", data=[1], idempotency_key="k", ordering_key="o", occurred_at=12.5
    )  # fmt: skip
    assert (line, dated, zoned) == (expected, expected, expected)


@pytest.mark.parametrize(
    "raw",
    [
        b"nope",
        b"[]",
        b"1",
        b"\xff",
        b'{"data": 1}',
        b'{"type": "a"}',
        b'{"type": 1, "data": 1}',
        b'{"type": "a", "event_type": "b", "data": 1}',
        b'{"type": "a", "data": NaN}',
        b'{"type": "a", "data": 1, "ordering_key": 1}',
        b'{"type": "a", "data": 1, "idempotency_key": ""}',
        b'{"type": "a", "data": 1, "occurred_at": true}',
        b'{"type": "a", "data": 1, "occurred_at": "yesterday"}',
        b'{"type": "a", "data": 1, "occurred_at": 1e300}',
        b'{"type": "a", "data": "' + b"x" * 1_000 + b'"}',
        b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_event_is_refused_by_its_number(raw: bytes) -> None:
    """Whatever is wrong with it, the error names the line."""
    with pytest.raises(LineError, match=r"^line 7: "):
        READING.parse(raw, 7)


def test_a_blank_line_is_nothing() -> None:
    """Files end with a line break, and people leave gaps."""
    assert READING.parse(b" \r\n", 1) is None


def test_the_type_may_be_given_for_all_lines() -> None:
    """A line's own type comes first."""
    reading = Reading(default_type="a", max_bytes=1_000)

    lines = [reading.parse(raw, 1) for raw in (b'{"data": 1}', b'{"type": "b", "data": 1}')]

    assert [line and line.event_type for line in lines] == ["a", "b"]


# -- words ------------------------------------------------------------------------------------------------------------


def test_what_strangers_wrote_cannot_command_the_terminal() -> None:
    """Escape sequences are shown, not sent; what is long is cut."""
    assert printable("a\x1b[2Jb\r\n\u202e") == "a\\x1b[2Jb\\r\\n\\u202e"
    assert len(printable("x" * 1_000)) == 200


def test_an_error_is_one_sentence_whatever_it_is() -> None:
    """Groups speak by their first error, operating systems in words, the silent by their type."""
    group = ExceptionGroup("several", [ExceptionGroup("deep", [ValueError("a\nb")])])

    assert sentence_of(group) == "a b."
    assert sentence_of(FileNotFoundError(2, "No such file", "f")) == "No such file 'f'."
    assert sentence_of(KeyError()) == "KeyError."
