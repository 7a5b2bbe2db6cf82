"""examples/monitoring: the alerts fire when they should, on series of days and with a clock that promtool moves.

And the rules and the dashboard ask for metrics that there are.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lukshook.report import metrics

EXAMPLE = Path(__file__).parents[2] / "examples/monitoring"
RULES = EXAMPLE / "lukshook.rules.yml"
DASHBOARD = EXAMPLE / "grafana-dashboard.json"
DAY = 86400.0
#: Days of each series, and samples of a day: Prometheus forgets what is older than five minutes.
DAYS, SAMPLES = 11, 288
#: What a series is at a time in days; None where there is no sample.
Series = Callable[[float], float | None]


def always(value: float | None) -> Series:
    return lambda day: value


def daily(day: float) -> float:
    """The time stamp of what happens at the start of every day."""
    return int(day) * DAY


def until(last: float, before: Series, after: Series) -> Series:
    """*before* to the day *last*, then *after*."""
    return lambda day: before(day) if day < last else after(day)


def stopped(last: float) -> Series:
    """What happened daily until the day *last*."""
    return lambda day: daily(min(day, last))


#: A volume whose backups, verifications and drills are in order. The first is node_exporter's own.
HEALTHY: dict[str, Series] = {
    'node_textfile_mtime_seconds{file="/var/lib/x/lukshook.prom"': daily,
    "last_success_timestamp_seconds": daily,
    "last_snapshot_timestamp_seconds": daily,
    "last_full_verify_timestamp_seconds": always(-80 * DAY),
    "last_drill_timestamp_seconds": always(-80 * DAY),
    **{name: always(0) for name in ("last_failed", "last_drill_failed", "problem", "unclean_total", "bad_pieces")},
    **{name: always(0) for name in ("last_verify_failed", "copies_behind")},
    **{name: always(1) for name in ("store_answers", "ledger_up_to_date")},
    "used_bytes": always(80),
    "capacity_bytes": always(100),
    "image_bytes": always(120),
    "image_allocated_bytes": always(100),
    "store_free_bytes": always(20),
}
TEXTFILE = next(iter(HEALTHY))
#: What goes wrong, by the series that show it: the alerts at times in days.
CASES: dict[str, tuple[Mapping[str, Series], dict[float, set[str]]]] = {
    "healthy": ({}, {1.5: set(), 10.5: set()}),
    "silent": (
        {TEXTFILE: stopped(5), "last_success_timestamp_seconds": stopped(5), "last_snapshot_timestamp_seconds": daily},
        {6.9: set(), 7.2: {"BackupSilent", "BackupLate"}},
    ),
    "gone": (
        {name: until(5, series, always(None)) for name, series in HEALTHY.items()},
        {4.9: set(), 5.2: {"BackupMetricsMissing"}},
    ),
    "late": ({"last_success_timestamp_seconds": stopped(5)}, {6.9: set(), 7.2: {"BackupLate"}}),
    "never": ({"last_success_timestamp_seconds": always(None)}, {1.9: set(), 2.2: {"BackupNeverDone"}}),
    "failing": ({"last_failed": until(5, always(0), always(1))}, {4.9: set(), 5.2: {"BackupFailing"}}),
    "problem": ({"problem": until(5, always(0), always(1))}, {4.9: set(), 5.2: {"BackupProblem"}}),
    "full": ({"used_bytes": until(5, always(90), always(91))}, {4.9: set(), 5.2: {"BackupVolumeFull"}}),
    "store full": ({"store_free_bytes": until(5, always(20), always(19))}, {4.9: set(), 5.2: {"BackupStoreFull"}}),
    "store gone": (
        {
            "store_answers": until(5, always(1), always(0)),
            **dict.fromkeys(("image_bytes", "image_allocated_bytes"), until(5, always(9), always(None))),
        },
        {4.9: set(), 5.2: {"BackupStoreGone"}},
    ),
    "recovered": (
        {"unclean_total": until(5, always(0), always(1))},
        {4.9: set(), 5.5: {"BackupRecovered"}, 7.0: set()},
    ),
    "damaged": ({"bad_pieces": until(5, always(0), always(2))}, {4.9: set(), 5.2: {"BackupDamaged"}}),
    "found damaged": ({"last_verify_failed": until(5, always(0), always(1))}, {4.9: set(), 5.2: {"BackupDamaged"}}),
    "never verified": (
        {"last_full_verify_timestamp_seconds": always(None)},
        {6.9: set(), 7.2: {"BackupNeverVerified"}},
    ),
    "verified long ago": (
        {"last_full_verify_timestamp_seconds": always(-95 * DAY)},
        {4.9: set(), 5.2: {"BackupNotVerified"}},
    ),
    "drill overdue": (
        {"last_drill_timestamp_seconds": always(-95 * DAY)},
        {4.9: set(), 5.2: {"BackupDrillOverdue"}},
    ),
    "drill failed": ({"last_drill_failed": until(5, always(0), always(1))}, {4.9: set(), 5.2: {"RestoreWouldFail"}}),
    "copies": ({"copies_behind": until(5, always(0), always(1))}, {6.9: set(), 7.2: {"BackupCopyBehind"}}),
    "snapshots": ({"last_snapshot_timestamp_seconds": stopped(5)}, {7.9: set(), 8.2: {"BackupSnapshotLate"}}),
    "without options": (
        {
            name: always(None)
            for name in HEALTHY
            if re.search("verif|ledger|bad_pieces|drill|snapshot|copies|image|store_free", name)
        },
        {1.5: set(), 10.5: set()},
    ),
}


def samples(series: Series) -> str:
    """As promtool has them: the same value several times is "VxN"."""
    found = [series(number / SAMPLES) for number in range(DAYS * SAMPLES)]
    groups: list[tuple[float | None, int]] = []
    for value in found:
        same = bool(groups) and groups[-1][0] == value
        groups[-1:] = [(value, groups[-1][1] + 1)] if same else [*groups[-1:], (value, 0)]
    return " ".join(f"{'_' if value is None else format(value, '.0f')}x{times}" for value, times in groups)


def named(name: str) -> str:
    """A series with the labels that every one of ours has at a scrape."""
    labels = 'instance="here", job="node"'
    return f"{name}, {labels}}}" if "{" in name else f'lukshook_{name}{{volume="offsite", {labels}}}'


def firing(day: float, alerts: set[str]) -> dict[str, Any]:
    """That exactly *alerts* fire then."""
    return {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{day * 24:.0f}h",
        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(alerts)],
    }


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("case", CASES)
def test_an_alert_fires_when_it_should_and_no_other(tmp_path: Path, case: str) -> None:
    changes, expected = CASES[case]
    test = {
        "interval": "5m",
        "input_series": [
            {"series": named(name), "values": samples(series)} for name, series in {**HEALTHY, **changes}.items()
        ],
        "promql_expr_test": [firing(day, alerts) for day, alerts in expected.items()],
    }
    whole = {"rule_files": [str(RULES)], "evaluation_interval": "1h", "tests": [test]}
    (tmp_path / "test.yml").write_text(json.dumps(whole))  # JSON is YAML as well

    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    """One that never fires is worse than none."""
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))

    assert alerts == {name for _, expected in CASES.values() for names in expected.values() for name in names}


def known() -> set[str]:
    """The metrics that lukshook writes."""
    return {f"lukshook_{name}" for name, *_ in metrics.METRICS}


def queries() -> list[str]:
    """Every query of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("file", [RULES, DASHBOARD], ids=lambda file: file.name)
def test_what_is_asked_for_is_there(file: Path) -> None:
    """A metric that was renamed would leave a panel empty, and an alert silent."""
    asked = set(re.findall(r"lukshook_[a-z_]+", file.read_text()))

    assert asked
    assert asked <= known()
    assert {"lukshook_" + name.partition("{")[0] for name in HEALTHY if "{" not in name} <= known()


def test_the_panels_fill_the_dashboard() -> None:
    """Each has a number, a place of its own within 24 columns, and a query."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(panels) == len({panel["id"] for panel in panels})
    assert len(places) == len(set(places))
    assert {x for x, _ in places} == set(range(24))
    assert len(places) == 24 * len({y for _, y in places})
    assert all(panel["targets"] for panel in panels)


@pytest.mark.needs("promtool")
def test_the_queries_of_the_dashboard_are_right(tmp_path: Path) -> None:
    """For Prometheus, with what Grafana puts in place of its variables."""
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$\w+", ".*", query)} for number, query in enumerate(queries())
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

    done = subprocess.run(
        ["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
