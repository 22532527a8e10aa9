"""The commands and their arguments.

Rules of this module: one function for each command, which hands on to the module of its subject. What is refused here
are only combinations of arguments.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
from cyclopts import App, CycloptsError, Parameter

from webhook_adapter import StoreError, new_secret
from webhook_adapter.cli.flags import SettingFlags, load_settings
from webhook_adapter.cli.lines import Reading
from webhook_adapter.cli.listening import Misbehaviour, listen
from webhook_adapter.cli.output import CommandError, fail, sentence_of, tell_json
from webhook_adapter.cli.sending import Sending
from webhook_adapter.demo import DemoError, run_demo
from webhook_adapter.demo.display import closing, display_for
from webhook_adapter.keys import check_key, check_secret
from webhook_adapter.model import check_event_type

__all__ = ["main"]

_DISTRIBUTION = "stormguard"
_FAILED = 1
_USAGE = 2
_INTERRUPTED = 130
_LOOPBACK_NAMES = ("127.0.0.1", "localhost")
_MAX_PORT = 65_535
_UNAVAILABLE = 503


_Result = TypeVar("_Result")


class _UsageError(Exception):
    """Arguments that do not go together, or a value that means nothing."""


def _version() -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown (the packages are not installed)"


app = App(name="webhook-adapter", help="Durable, signed webhooks.", version=_version, help_format="plaintext")

_Json = Annotated[bool, Parameter(name="--json", negative=())]


@app.command(name="demo")
def demo_command(
    *,
    events: Annotated[int, Parameter(name="--events")] = 10_000,
    json: _Json = False,
) -> int:
    """Watch events become signed webhooks, past failing receivers, a storm and a kill -9.

    Takes about a quarter of a minute, needs no network, and leaves nothing behind. Ends with exit code 1 if anything
    was lost.

    Parameters
    ----------
    events
        How many events the storm has.
    json
        Print the figures as JSON, and nothing else.
    """
    if events < 1:
        raise _UsageError(f"--events must be at least 1, not {events}")
    account = _run(partial(run_demo, events=events, display=display_for(quiet=json)))
    if json:
        tell_json(account.as_json())
    else:
        closing(account)
    return 0 if account.sound else _FAILED


@app.command(name="send")
def send_command(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    data_dir: Annotated[Path, Parameter(env_var="WEBHOOK_ADAPTER_DATA_DIR")],
    type: Annotated[str | None, Parameter(name="--type")] = None,  # noqa: A002 - the name of the flag
    idempotency_key_field: str | None = None,
    endpoint: str | None = None,
    secret: str | None = None,
    wait: Annotated[bool, Parameter(negative=())] = False,
    allow_loopback: Annotated[bool, Parameter(negative=())] = False,
    config: Annotated[Path | None, Parameter(env_var="WEBHOOK_ADAPTER_CONFIG")] = None,
    json: _Json = False,
    settings: SettingFlags | None = None,
) -> int:
    """Accept events from a file of JSON Lines durably, and deliver them if asked to wait.

    A line is {"type": …, "data": …}, and may have "idempotency_key", "ordering_key" and "occurred_at" (Unix seconds or
    ISO 8601). A file is checked in full before its first line is accepted.

    Parameters
    ----------
    file
        The file, or - for standard input.
    data_dir
        The directory of the database; made if it is not there.
    type
        The event type of lines that have none.
    idempotency_key_field
        The field of each line, or of its data, whose value is the idempotency key.
    endpoint
        Register this URL for all events first, unless it is registered.
    secret
        The signing secret of --endpoint; by default a new one, which is printed.
    wait
        Deliver until nothing is on its way any more, retries included; exit code 1 if a delivery is dead.
    allow_loopback
        Allow plain http, and addresses of this machine: for trying things out.
    config
        A TOML file with settings.
    json
        Print the figures as JSON.
    """
    if secret is not None and endpoint is None:
        raise _UsageError("--secret is the secret of an --endpoint, which was not given")
    if secret is not None:
        _usage("--secret", check_secret, secret)
    if type is not None:
        _usage("--type", check_event_type, type)
    loaded = load_settings(settings, config=config, allow_loopback=allow_loopback)
    sending = Sending(
        source=file,
        data_dir=data_dir,
        settings=loaded,
        reading=Reading(default_type=type, key_field=idempotency_key_field, max_bytes=loaded.max_payload_bytes),
        endpoint=endpoint,
        secret=secret,
        wait=wait,
        as_json=json,
    )
    try:
        code = _run(sending.run)
    except KeyboardInterrupt:
        sending.report()
        raise
    sending.report()
    return code


@app.command(name="listen")
def listen_command(
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    secret: str | None = None,
    fail_rate: float | None = None,
    latency: float = 0.0,
    status: int | None = None,
    json: _Json = False,
) -> int:
    """Receive webhooks, verify their signatures, and show each, until Ctrl-C.

    Parameters
    ----------
    port
        The port; 0 takes a free one.
    host
        The address; this version listens on 127.0.0.1 only.
    secret
        The signing secret; by default a new one, which is printed.
    fail_rate
        The share of requests that are answered with --status; by default none, or all if --status is given.
    latency
        Seconds before each answer.
    status
        What failing requests are answered with; 503 if not given.
    json
        Print lines of JSON.
    """
    if host not in _LOOPBACK_NAMES:
        raise _UsageError(f"--host must be 127.0.0.1 in this version, not {host!r}")
    if not 0 <= port <= _MAX_PORT:
        raise _UsageError(f"--port must be from 0 to {_MAX_PORT}, not {port}")
    if secret is not None:
        _usage("--secret", check_key, secret)
    rate = fail_rate if fail_rate is not None else 0.0 if status is None else 1.0
    try:
        misbehaviour = Misbehaviour(fail_rate=rate, status=_UNAVAILABLE if status is None else status, latency=latency)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    anyio.run(
        partial(
            listen,
            port=port,
            secret=new_secret() if secret is None else secret,
            given=secret is not None,
            misbehaviour=misbehaviour,
            as_json=json,
        )
    )
    return 0


def _run(func: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run a command that has something to tidy up: SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return anyio.run(func)


def _usage(flag: str, check: Callable[[str], object], value: str) -> None:
    try:
        check(value)
    except ValueError as error:
        raise _UsageError(f"{flag}: {error}") from error


def _explained(error: BaseException) -> str:
    """Return one sentence: what was foreseen explains itself, anything else is named by its type as well."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CommandError | DemoError | StoreError | ValueError | OSError):
        return sentence_of(error)
    return f"This should not have happened, and is a bug: {type(error).__name__}: {sentence_of(error)}"


def main(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name, and return the exit code; no error is raised but in development mode."""
    try:
        code: object = app(arguments, result_action="return_value", exit_on_error=False, print_error=False)
    except (CycloptsError, _UsageError) as error:
        fail(sentence_of(error))
        return _USAGE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. What is buffered must not be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        fail(_explained(error))
        return _FAILED
    return code if isinstance(code, int) else 0
