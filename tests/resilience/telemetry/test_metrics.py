"""The table of metrics: complete, well named, and the one that the documentation shows."""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest

import resilience
from resilience import LayerKind
from resilience.telemetry.metrics import LEFT_OUT, METRICS, Instrument, Kind, Labelled, Metric, One
from resilience.telemetry.watching import Watched
from tests.documents import ROOT
from tests.resilience.support import assert_caught
from tests.resilience.telemetry.samples import one_of_each

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The class of the statistics of each kind.
CLASSES: dict[Kind, type] = {
    source.kind: type(source.measured.statistics()) for source in Watched(tuple(one_of_each().values())).sources
}


def law_of_the_table(metrics: tuple[Metric, ...], left_out: Mapping[Kind, Mapping[str, str]]) -> None:
    """Each field of each kind's statistics is told once, or left out for a reason; the table names no other (TE3)."""
    for kind, snapshot_class in CLASSES.items():
        told = [field for metric in metrics if kind in metric.kinds for field in metric.read.fields]
        hidden = left_out.get(kind, {})
        own = [field.name for field in attrs.fields(snapshot_class)]
        for field in own:
            assert told.count(field) == 1 or (field in hidden and told.count(field) <= 1), f"{kind}: {field}"
        assert set(hidden) <= set(own), f"{kind}: {hidden} is out of date"
        for metric in metrics:
            if kind in metric.kinds:
                known = set(metric.read.fields) & set(own)
                # Fields that go under one label are those of several kinds; no kind is in vain.
                assert known if isinstance(metric.read, Labelled) else known == set(metric.read.fields), metric.name


def test_every_field_is_exported_or_left_out() -> None:
    """TE3: a field that somebody adds, forgets or renames is noticed, whichever side it is on."""
    law_of_the_table(METRICS, LEFT_OUT)
    for metric in METRICS:
        others = tuple(other for other in METRICS if other is not metric)
        assert_caught(partial(law_of_the_table, others, LEFT_OUT))
    assert_caught(partial(law_of_the_table, METRICS, {**LEFT_OUT, Kind.RETRY: {"gone": "it was renamed"}}))
    assert_caught(partial(law_of_the_table, METRICS, {**LEFT_OUT, Kind.CIRCUIT_BREAKER: {}}))
    misplaced = attrs.evolve(METRICS[0], kinds=(*METRICS[0].kinds, Kind.RETRY))
    assert_caught(partial(law_of_the_table, (misplaced, *METRICS[1:]), LEFT_OUT))


def test_every_class_of_statistics_is_known() -> None:
    """TE3: a class of statistics that is new to `resilience` has to get a kind, or nobody would see it."""
    found = set()
    for module in pkgutil.walk_packages(resilience.__path__, "resilience."):
        if module.name.startswith(("resilience.telemetry", "resilience.redis")):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.endswith("Statistics") and isinstance(value, type):
                found.add(value)
    assert found == set(CLASSES.values())
    assert set(CLASSES) == set(Kind)


def test_names_are_of_one_style() -> None:
    """OpenTelemetry's: dots between name spaces, units in braces for what is counted, the sentence ends with a stop."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"resilience(\.[a-z]+(_[a-z]+)*)+", metric.name), metric.name
        assert re.fullmatch(r"\{[a-z]+\}|s|1", metric.unit), metric.name
        assert re.fullmatch(r"[A-Z1].*\.", metric.help), metric.name
        assert not metric.name.endswith(("total", "count", "sum", "bucket", "info")), metric.name
        assert not {"guard", "kind", "name"} & set(metric.read.labels), metric.name


@pytest.mark.parametrize("kind", LayerKind)
def test_kind_of_a_layer_is_a_label(kind: LayerKind) -> None:
    """What layers call themselves is what the label says; what has no metrics of its own is another."""
    label = Kind.of_layer(kind)
    without = {LayerKind.DEADLINE, LayerKind.POLICY, LayerKind.OTHER}
    assert label.value == ("other" if kind in without else kind.value.replace(" ", "_"))


def test_what_is_none_is_not_told() -> None:
    """A delay that is not known yet is no number."""

    @attrs.frozen
    class Snapshot:
        delay: float | None

    read = One("delay")
    assert list(read.points(Snapshot(None), read.fields)) == []
    assert list(read.points(Snapshot(0.5), read.fields)) == [((), 0.5)]


def rows() -> list[str]:
    """Return the rows of the table on the page."""
    names = {
        Instrument.COUNTER: "counter",
        Instrument.SUMMABLE: "gauge",
        Instrument.GAUGE: "gauge",
        Instrument.STATES: "state set",
    }
    return [
        f"| `{metric.name}` | {names[metric.instrument]} | {metric.unit.strip('{}').replace('_', ' ')} | "
        f"{', '.join(f'`{label}`' for label in metric.read.labels)} | {metric.help.rstrip('.')} |"
        for metric in METRICS
    ]


def test_the_page_shows_the_table() -> None:
    """Every metric is in the documentation, in the table's order, and nothing else is."""
    text = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| `resilience.")] == rows()
