"""Settings: precedence, where values came from, and what is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import pytest

from webhook_adapter.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

KEY = "canary canary canary"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a TOML file."""
    path = tmp_path / "webhooks.toml"
    path.write_text('attempt_timeout = 3\nlease_for = 10\negress_allow = ["10.0.0.0/8"]\nretry_jitter = 0.5\n')
    return path


def test_an_argument_beats_the_environment_beats_the_file(file: Path) -> None:
    """Each source beats the next, field by field, and says that it did."""
    settings = Settings.load(
        {"attempt_timeout": 1.0, "drain_timeout": None},
        {"WEBHOOK_ADAPTER_ATTEMPT_TIMEOUT": "2", "WEBHOOK_ADAPTER_LEASE_FOR": "20", "PATH": "/bin"},
        file,
    )
    assert (settings.attempt_timeout, settings.lease_for, settings.retry_jitter) == (1.0, 20.0, 0.5)
    assert settings.egress_allow == ("10.0.0.0/8",)
    assert settings.drain_timeout == 10.0
    assert {name: origin for name, origin in settings.origins.items() if origin != "default"} == {
        "attempt_timeout": "argument",
        "lease_for": "environment",
        "retry_jitter": "file",
        "egress_allow": "file",
    }
    assert set(settings.origins) == {field.name for field in attrs.fields(Settings)} - {"origins"}


def test_nothing_given_is_the_defaults() -> None:
    """Without sources the settings are those that the contract names."""
    settings = Settings.load()
    assert settings == Settings()
    assert settings.retry_schedule == (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    assert (settings.attempt_timeout, settings.lease_for, settings.expire_after) == (15.0, 30.0, 432_000.0)


def test_text_is_read_by_field() -> None:
    """Lists are separated by commas, durations are seconds, truth is a word."""
    settings = Settings.load(
        environment={
            "WEBHOOK_ADAPTER_RETRY_SCHEDULE": "0, 1.5,30",
            "WEBHOOK_ADAPTER_EGRESS_DENY": "10.0.0.0/8, fd00::/8",
            "WEBHOOK_ADAPTER_ALLOW_HTTP": "True",
            "WEBHOOK_ADAPTER_MAX_CONCURRENT": "7",
            "WEBHOOK_ADAPTER_SECRET_KEY": KEY,
            "WEBHOOK_ADAPTER_DATA_DIR": "/data",
        }
    )
    assert settings.retry_schedule == (0.0, 1.5, 30.0)
    assert settings.egress_deny == ("10.0.0.0/8", "fd00::/8")
    assert (settings.allow_http, settings.max_concurrent, settings.secret_key) == (True, 7, KEY)


def test_a_key_is_never_shown() -> None:
    """WH12: neither a repr nor an error shows the key."""
    assert KEY not in repr(Settings(secret_key=KEY))
    with pytest.raises(ValueError, match="secret_key must be") as caught:
        Settings(secret_key="canary")
    assert "canary" not in str(caught.value)


def test_misspelt_names_are_refused(tmp_path: Path) -> None:
    """A name that is not known says where it was and what there is."""
    with pytest.raises(ValueError, match=r"argument 'atempt_timeout' is no setting; the settings are allow_http"):
        Settings.load({"atempt_timeout": 1.0})
    with pytest.raises(ValueError, match="environment variable WEBHOOK_ADAPTER_LEASE is no setting"):
        Settings.load(environment={"WEBHOOK_ADAPTER_LEASE": "1"})
    path = tmp_path / "x.toml"
    path.write_text("lease = 1")
    with pytest.raises(ValueError, match=r"key 'lease' in .*x\.toml is no setting"):
        Settings.load(toml_path=path)
    with pytest.raises(ValueError, match="'origins' is no setting"):
        Settings.load({"origins": {}})


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A file that is not there, or is not TOML, says so in one sentence."""
    with pytest.raises(ValueError, match=r"toml_path .* cannot be read: No such file"):
        Settings.load(toml_path=tmp_path / "none.toml")
    path = tmp_path / "x.toml"
    path.write_text("this is = = no TOML")
    with pytest.raises(ValueError, match=r"toml_path .* is not TOML"):
        Settings.load(toml_path=str(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [("ATTEMPT_TIMEOUT", "fast"), ("MAX_CONCURRENT", "1.5"), ("ALLOW_HTTP", "maybe"), ("RETRY_SCHEDULE", "1;2")],
)
def test_text_that_cannot_be_read_is_refused(name: str, text: str) -> None:
    """The error names the field, the variable and the text."""
    with pytest.raises(ValueError, match=f"{name.lower()} cannot be read from WEBHOOK_ADAPTER_{name}: '{text}'"):
        Settings.load(environment={f"WEBHOOK_ADAPTER_{name}": text})


_DURATIONS = (
    "attempt_timeout",
    "retry_after_max",
    "breaker_recovery_timeout",
    "lease_for",
    "drain_timeout",
    "secret_overlap_for",
    "expire_after",
    "retention_for",
)
_COUNTS = (
    "max_concurrent",
    "endpoint_max_concurrent",
    "breaker_failure_threshold",
    "max_payload_bytes",
    "max_response_bytes",
)


@pytest.mark.parametrize("name", [*_DURATIONS, "retry_jitter", *_COUNTS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, True, "1", None])
def test_numbers_must_be_numbers(name: str, value: object) -> None:
    """Whatever is not a finite number in range is refused, naming the argument and the value."""
    with pytest.raises(ValueError, match=f"{name} must be .*{value!r}"):
        Settings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retry_schedule", ()),
        ("retry_schedule", (0.0, math.nan)),
        ("retry_schedule", (0.0, -1.0)),
        ("retry_schedule", (True,)),
        ("retry_schedule", "0,5"),
        ("retry_schedule", 5),
        ("retry_schedule", (0.0,) * 1001),
        ("egress_allow", ("10.0.0.1/8",)),
        ("egress_deny", ("nonsense",)),
        ("egress_deny", (1,)),
        ("allow_http", 1),
        ("retry_jitter", 1.1),
        ("max_concurrent", 0),
        ("max_concurrent", 1.0),
        ("attempt_timeout", 0),
        ("secret_key", 5),
    ],
)
def test_values_must_mean_something(name: str, value: object) -> None:
    """Whatever has no meaning is refused by the name of its field."""
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]


def test_networks_come_in_a_list() -> None:
    """A single text would be taken letter by letter; it is refused."""
    with pytest.raises(ValueError, match="list of networks"):
        Settings(egress_allow="10.0.0.0/8")


def test_a_lease_outlives_an_attempt() -> None:
    """A lease that may end during an attempt would make duplicates by design."""
    with pytest.raises(
        ValueError, match=r"lease_for must be more than attempt_timeout \(15.0\) by at least 1 s, not 15.5"
    ):
        Settings(lease_for=15.5)
