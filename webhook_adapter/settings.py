"""Settings: one class, and where its values come from.

Rules of this module:

* An argument beats the environment (`WEBHOOK_ADAPTER_<FIELD>`), which beats the TOML file, which beats the default.
  Where each value came from can be asked (`origins`).
* In text (the environment, a command line) durations are seconds, lists are separated by commas, truth is "true" or
  "false". A name that is not known is an error, since a misspelt limit would silently not hold.
* Every value is checked, with the others, when the settings are made. No error and no repr shows `secret_key`.

It imports nothing of the adapter, and reads no environment but the one it is given.
"""

from __future__ import annotations

import ipaddress
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import attrs

__all__ = ["ENVIRONMENT_PREFIX", "Origin", "Settings"]

ENVIRONMENT_PREFIX: Final = "WEBHOOK_ADAPTER_"

Origin: TypeAlias = Literal["argument", "environment", "file", "default"]

_RESERVED = frozenset({"CONFIG", "DATABASE", "DATA_DIR", "HOST", "PORT", "REDIS", "TOKEN"})
"""What the programs read from the environment beside the settings."""
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_NO_ORIGINS: Mapping[str, Origin] = MappingProxyType({})
_SCHEDULE = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
_MAX_ATTEMPTS = 1000
_MIN_SECRET_KEY = 16
_SPARE_LEASE = 1.0
_PARSE: Final = "parse"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(_owner: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{attribute.name} must be a finite number above 0, not {value!r}")


def _not_negative(_owner: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not _is_number(value) or value < 0:
        raise ValueError(f"{attribute.name} must be a finite number of at least 0, not {value!r}")


def _share(_owner: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be from 0 to 1, not {value!r}")


def _count(_owner: object, attribute: attrs.Attribute[int], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name} must be a whole number of at least 1, not {value!r}")


def _truth(_owner: object, attribute: attrs.Attribute[bool], value: bool) -> None:  # noqa: FBT001 - attrs calls it so
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name} must be True or False, not {value!r}")


def _networks(_owner: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    for network in value:
        try:
            if not isinstance(network, str):
                raise ValueError(network)  # noqa: TRY301 - one sentence for both
            ipaddress.ip_network(network)
        except ValueError:
            raise ValueError(f"{attribute.name} must hold networks such as '10.0.0.0/8', not {network!r}") from None


def _schedule(_owner: object, attribute: attrs.Attribute[tuple[float, ...]], value: tuple[float, ...]) -> None:
    if not 1 <= len(value) <= _MAX_ATTEMPTS:
        raise ValueError(f"{attribute.name} must have 1 to {_MAX_ATTEMPTS} delays, not {len(value)}")
    for delay in value:
        if not _is_number(delay) or delay < 0:
            raise ValueError(f"{attribute.name} must hold finite seconds of at least 0, not {delay!r}")


def _secret(_owner: object, attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and (not isinstance(value, str) or len(value) < _MIN_SECRET_KEY):
        raise ValueError(f"{attribute.name} must be a random text of at least {_MIN_SECRET_KEY} characters")


def _tuple(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError(f"a list of networks is needed, not {value!r}")
    return tuple(value)


def _delays(value: Iterable[float]) -> tuple[float, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError(f"retry_schedule must be a list of seconds, not {value!r}")
    return tuple(float(delay) if _is_number(delay) else delay for delay in value)


def _masked(value: str | None) -> str:
    return "None" if value is None else "'…'"


def _frozen(value: Mapping[str, Origin]) -> Mapping[str, Origin]:
    return MappingProxyType(dict(value))


def _parse_float(text: str) -> float:
    return float(text)


def _parse_int(text: str) -> int:
    # "262_144" reads better than it looks.
    return int(text)


def _parse_truth(text: str) -> bool:
    return _TRUTH[text.lower()]


def _parse_texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _parse_delays(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())


def _parse_text(text: str) -> str:
    return text


_Parser: TypeAlias = Callable[[str], object]
_SECONDS: Mapping[str, _Parser] = {_PARSE: _parse_float}
_WHOLE: Mapping[str, _Parser] = {_PARSE: _parse_int}
_NETWORKS: Mapping[str, _Parser] = {_PARSE: _parse_texts}


@attrs.frozen(kw_only=True)
class Settings:
    """How the adapter behaves. Durations are seconds.

    Attributes:
        attempt_timeout: the one total deadline of an attempt: DNS, connect, TLS, headers and body.
        retry_schedule: the delay before each attempt of a round, so its length is their number.
        retry_jitter: the share of a delay that it is made shorter or longer by, at random.
        retry_after_max: the longest that a receiver's Retry-After is honoured.
        egress_allow: networks that may be connected to although they are private or otherwise refused.
        egress_deny: networks that may not be connected to, whatever else is said.
        allow_http: whether endpoints may have plain http URLs; they lead only into `egress_allow`.
        max_concurrent: attempts in flight at a time, in this process. No endpoint gets more than two thirds of them,
            and with k slow ones none gets more than its share, so that there is always room for another.
        endpoint_max_concurrent: attempts in flight at a time, to one endpoint.
        breaker_failure_threshold: after how many failures in a row an endpoint is left alone.
        breaker_recovery_timeout: for how long, before it is tried again.
        lease_for: how long a delivery is one process's; longer than any attempt takes, by at least a second.
        drain_timeout: how long attempts in flight may go on when the service stops.
        max_payload_bytes: the largest body that is accepted.
        max_response_bytes: how much of a response is read and kept.
        secret_overlap_for: how long the old secret still signs after a rotation.
        expire_after: when a delivery that has not succeeded is given up.
        retention_for: how long messages are kept once they have ended; an idempotency key lives as long as its message.
        secret_key: encrypts signing secrets at rest; a random text. Never shown.
        origins: where each value came from, if `load` made these settings.
    """

    attempt_timeout: float = attrs.field(default=15.0, validator=_positive, metadata=_SECONDS)
    retry_schedule: tuple[float, ...] = attrs.field(
        default=_SCHEDULE, converter=_delays, validator=_schedule, metadata={_PARSE: _parse_delays}
    )
    retry_jitter: float = attrs.field(default=0.2, validator=_share, metadata=_SECONDS)
    retry_after_max: float = attrs.field(default=86_400.0, validator=_not_negative, metadata=_SECONDS)
    egress_allow: tuple[str, ...] = attrs.field(default=(), converter=_tuple, validator=_networks, metadata=_NETWORKS)
    egress_deny: tuple[str, ...] = attrs.field(default=(), converter=_tuple, validator=_networks, metadata=_NETWORKS)
    allow_http: bool = attrs.field(default=False, validator=_truth, metadata={_PARSE: _parse_truth})
    max_concurrent: int = attrs.field(default=200, validator=_count, metadata=_WHOLE)
    endpoint_max_concurrent: int = attrs.field(default=50, validator=_count, metadata=_WHOLE)
    breaker_failure_threshold: int = attrs.field(default=5, validator=_count, metadata=_WHOLE)
    breaker_recovery_timeout: float = attrs.field(default=60.0, validator=_positive, metadata=_SECONDS)
    lease_for: float = attrs.field(default=30.0, validator=_positive, metadata=_SECONDS)
    drain_timeout: float = attrs.field(default=10.0, validator=_not_negative, metadata=_SECONDS)
    max_payload_bytes: int = attrs.field(default=262_144, validator=_count, metadata=_WHOLE)
    max_response_bytes: int = attrs.field(default=16_384, validator=_count, metadata=_WHOLE)
    secret_overlap_for: float = attrs.field(default=86_400.0, validator=_not_negative, metadata=_SECONDS)
    expire_after: float = attrs.field(default=432_000.0, validator=_positive, metadata=_SECONDS)
    retention_for: float = attrs.field(default=2_592_000.0, validator=_positive, metadata=_SECONDS)
    secret_key: str | None = attrs.field(
        default=None,
        validator=_secret,
        repr=_masked,
        metadata={_PARSE: _parse_text},
    )
    origins: Mapping[str, Origin] = attrs.field(default=_NO_ORIGINS, converter=_frozen, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        # What is to spare is the time from the lease to the attempt. Next to nothing would let no attempt begin.
        if self.lease_for < self.attempt_timeout + _SPARE_LEASE:
            raise ValueError(
                f"lease_for must be more than attempt_timeout ({self.attempt_timeout!r}) by at least"
                f" {_SPARE_LEASE:g} s, not {self.lease_for!r}"
            )

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        toml_path: str | Path | None = None,
    ) -> Settings:
        """Return settings put together from arguments, environment and a TOML file, in this precedence.

        Args:
            arguments: by field; None as a value is not given, text is parsed as in the environment.
            environment: `os.environ`, say; names without the prefix are passed over. None reads no environment.
            toml_path: a file whose top-level keys are fields; None reads none.

        Raises:
            ValueError: a name that is not known, or a value that has no meaning; it says where it came from.
        """
        found: dict[str, object] = {}
        origins: dict[str, Origin] = dict.fromkeys(_FIELDS, "default")
        sources: tuple[tuple[Origin, Mapping[str, object]], ...] = (
            ("file", {} if toml_path is None else _from_file(Path(toml_path))),
            ("environment", _from_environment({} if environment is None else environment)),
            ("argument", _from_arguments({} if arguments is None else arguments)),
        )
        for origin, values in sources:
            for name, value in values.items():
                found[name] = value
                origins[name] = origin
        # Each value goes through the converter and validator of its field, which refuse what has the wrong type.
        return cls(**found, origins=origins)  # type: ignore[arg-type]


_FIELDS = {field.name: field for field in attrs.fields(Settings) if field.name != "origins"}


def _check_name(name: str, where: str) -> None:
    if name not in _FIELDS:
        raise ValueError(f"{where} is no setting; the settings are {', '.join(sorted(_FIELDS))}")


def _parsed(name: str, value: object, where: str) -> object:
    if not isinstance(value, str):
        return value
    parse: _Parser = _FIELDS[name].metadata[_PARSE]
    try:
        return parse(value.strip())
    except (ValueError, KeyError):
        raise ValueError(f"{name} cannot be read from {where}: {value!r:.80}") from None


def _from_arguments(arguments: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in arguments.items():
        _check_name(name, f"the argument {name!r}")
        if value is not None:
            found[name] = _parsed(name, value, "its argument")
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable.removeprefix(ENVIRONMENT_PREFIX) in _RESERVED:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        _check_name(name, f"the environment variable {variable}")
        found[name] = _parsed(name, value, variable)
    return found


def _from_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            parsed = tomllib.load(file)
    except OSError as exc:
        raise ValueError(f"toml_path {str(path)!r} cannot be read: {exc.strerror or exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"toml_path {str(path)!r} is not TOML: {exc}") from exc
    found: dict[str, object] = {}
    for name, value in parsed.items():
        _check_name(name, f"the key {name!r} in {path}")
        found[name] = _parsed(name, value, str(path))
    return found
