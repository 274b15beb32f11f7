"""The dashboard and the alerts that the package brings: what they name is served, with the labels that they use."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmd.daemon.metrics import _GPU, Metrics

FOLDER = Path(__file__).parents[2] / "packaging/monitoring"
OF_PROMETHEUS = {"instance", "job", "le"}
SAMPLE = re.compile(r"\b((?:llmd|process)_[a-z_]+)(?:\{([^}]*)\})?")


def board() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "llmd.dashboard.json").read_text()))


def rules() -> list[dict[str, Any]]:
    load = import_module("yaml").safe_load
    return [rule for group in load((FOLDER / "llmd.rules.yml").read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    alerts = [rule["expr"] for rule in rules()]
    panels = [target["expr"] for panel in board()["panels"] for target in panel["targets"]]
    variables = [one["query"]["query"] for one in board()["templating"]["list"] if one["type"] == "query"]
    return [*alerts, *panels, *variables]


@pytest.fixture(scope="module")
def served() -> dict[str, set[str]]:
    """Each sample's labels."""
    metrics = Metrics()
    model = metrics.model("m")
    for count in (model.prompt, model.cached, model.output, model.ttft, model.gap, model.up):
        count(1)
    model.restarts()
    model.state(1, 1, 1, 0.5)
    metrics.outcome("m", "ok")
    metrics.certificates([("server", "", "1", 1.0)])
    metrics.gpus([("GPU-1", "a GPU", dict.fromkeys(_GPU, 1.0))])
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize("expression", expressions())
def test_what_is_named_is_served(expression: str, served: dict[str, set[str]]) -> None:
    found = SAMPLE.findall(expression)
    assert found or expression.startswith("up{")
    used = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r", *", group)}
    for name, matchers in found:
        assert name in served
        assert used | set(re.findall(r"(\w+)\s*[!=]~?\"?", matchers)) <= served[name] | OF_PROMETHEUS


def test_texts_use_labels_that_are_there(served: dict[str, set[str]]) -> None:
    for rule in rules():
        labels = set().union(*(served[name] for name, _ in SAMPLE.findall(rule["expr"])))
        texts = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", texts)) <= labels | OF_PROMETHEUS, rule["alert"]


def test_the_panels_do_not_lie_on_each_other() -> None:
    panels = board()["panels"]
    places = [(p["gridPos"]["x"] + x, p["gridPos"]["y"] + y) for p in panels
              for x in range(p["gridPos"]["w"]) for y in range(p["gridPos"]["h"])]  # fmt: skip
    assert len(places) == len(set(places)) and max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
