"""What tests know of Prometheus' text, of expressions and of rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent
RULES = ROOT / "etc" / "prometheus-rules.yaml"
DASHBOARD = ROOT / "etc" / "grafana-dashboard.json"

_HELD_MINUTES = 75
_LOOKS_MINUTES = (1, 2, 4, 7, 10, 70)

Labels = dict[str, str]


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str):
        self.text = text
        self.families = {f.name: f for f in text_string_to_metric_families(text)}
        self.samples: dict[str, list[tuple[Labels, float]]] = {}
        for family in self.families.values():
            for sample in family.samples:
                self.samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def value(self, name: str, **labels: str) -> float:
        """Value of the one sample with these labels."""
        [found] = [v for ls, v in self.samples[name] if labels.items() <= ls.items()]
        return found


def rules() -> list[dict[str, Any]]:
    """All rules of the file."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts of the file by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboard_expressions() -> list[str]:
    """All expressions of the dashboard."""
    board = json.loads(DASHBOARD.read_text())
    found = [t["expr"] for panel in board["panels"] for t in panel.get("targets", ())]
    found += [a["expr"] for a in board["annotations"]["list"] if "expr" in a]
    return [expr.replace("$job", "ppd") for expr in found]


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Metrics that an expression reads: name, and (label, ``Equal``, ``Re`` or the like, value)."""
    waiting: list[Any] = [promql_parser.parse(expression)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, promql_parser.VectorSelector):
            matchers = [(m.name, str(m.op).rpartition(".")[2], m.value) for m in node.matchers.matchers]
            yield node.name, matchers
        for part in ("lhs", "rhs", "expr", "vector_selector", "param"):
            child = getattr(node, part, None)
            if child is not None:
                waiting.append(child)
        waiting.extend(getattr(node, "args", ()))


def firing(scrapes: Sequence[Scrape | None]) -> set[str]:
    """Say which alerts fire when Prometheus gets these answers, a minute each and the last for long.

    Parameters
    ----------
    scrapes : sequence of `Scrape` or `None`
        `None`: nothing answers.

    Returns
    -------
    names : `set` [ `str` ]
        Alerts that fire at some time after the last answer has come.

    Notes
    -----
    Prometheus' own ``promtool test rules`` evaluates the rules; it has no
    other way to tell what it finds than to say that it expected nothing.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    minutes = len(scrapes) - 1
    series = []
    for name, labels in sorted(_all_series(scrapes)):
        values = []
        for number, scrape in enumerate(scrapes):
            repeats = 3 if number < minutes else 4 * _HELD_MINUTES
            value = _value(scrape, name, labels)
            values.append(f"_x{repeats + 1}" if value is None else f"{value!r}+0x{repeats}")
        text = ",".join(f"{key}={json.dumps(value)}" for key, value in labels)
        series.append({"series": f"{name}{{{text}}}", "values": " ".join(values)})
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    looks = [{"expr": expression, "eval_time": f"{minutes + after}m"} for after in _LOOKS_MINUTES]
    test = {"interval": "15s", "input_series": series, "promql_expr_test": looks}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "test.yaml")
        content = {"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": [test]}
        file.write_text(yaml.safe_dump(content))
        done = subprocess.run(
            [promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=120.0, check=False
        )
    said = done.stdout + done.stderr
    found = set(re.findall(r'\{alertname="(\w+)"\}', said))
    assert done.returncode == 0 or found, said
    return found


def _all_series(scrapes: Sequence[Scrape | None]) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    found = {
        (name, (*sorted(labels.items()), ("job", "ppd")))
        for scrape in scrapes
        if scrape is not None
        for name, samples in scrape.samples.items()
        for labels, _ in samples
    }
    return found | {("up", (("job", "ppd"),))}


def _value(scrape: Scrape | None, name: str, labels: tuple[tuple[str, str], ...]) -> float | None:
    if name == "up":
        return float(scrape is not None)
    wanted = dict(labels[:-1])
    if scrape is None:
        return None
    return next((v for ls, v in scrape.samples.get(name, ()) if ls == wanted), None)
