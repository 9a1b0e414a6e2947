"""What Prometheus asks, what its alerts and Grafana's panels are made of, against what the code serves."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import yaml
from headrace.serving import gateway
from headrace.serving.gauges import Gauges
from headrace.streams.broker.metrics import Metrics
from headrace.streams.metrics import describe_process
from prometheus_client import CollectorRegistry

from headrace import worker
from tests.compose.reading import option, published, services
from tests.scene import ROOT

SERVICES = services()
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "compose" / "prometheus.yml").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "compose" / "alerts.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((ROOT / "compose" / "grafana" / "headrace.json").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES: list[str] = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported() -> set[str]:
    """The names of every metric of every process, as Prometheus has them."""
    of_worker = CollectorRegistry()
    describe_process(of_worker, "worker", worker.BOUNDS)
    registries = [worker.REGISTRY, of_worker, Gauges(gateway.BOUNDS).registry, Metrics().registry]
    found: set[str] = set()
    for registry in registries:
        for family in registry.collect():
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            found |= {family.name + ending for ending in endings}
    return found


def test_alerts_and_panels_ask_for_metrics_that_there_are() -> None:
    asked = {name for text in [*QUERIES, *(r["expr"] for r in RULES)] for name in re.findall(r"headrace_\w+", text)}
    assert asked - exported() == set()


def test_every_bound_that_a_panel_shows_is_one_that_is_told() -> None:
    bounds = {"worker": set(worker.BOUNDS), "gateway": set(gateway.BOUNDS)}
    asked = [found for query in QUERIES for found in re.findall(r'headrace_(\w+)_bound\{bound=~?"([\w|]+)"', query)]
    assert asked
    for part, names in asked:
        assert set(names.split("|")) <= bounds[part]


def test_prometheus_asks_where_the_services_serve() -> None:
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    (found,) = jobs["worker"]["dns_sd_configs"]
    assert found["names"] == ["worker"]
    assert "worker" in SERVICES, "a service's name is the name of all its containers"
    assert str(found["port"]) == option(SERVICES["worker"]["command"], "--metrics-port")
    ((_, _, inner),) = published(SERVICES["gateway"])
    assert jobs["gateway"]["static_configs"] == [{"targets": [f"gateway:{inner}"]}]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert jobs["gateway"]["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    assert {text for rule in RULES for text in re.findall(r'job="(\w+)"', rule["expr"])} <= set(jobs)


def test_what_prometheus_and_grafana_read_is_mounted_where_they_look() -> None:
    mounts = dict(v.split(":")[:2] for s in ("prometheus", "grafana") for v in SERVICES[s]["volumes"])
    inside = {outer: inner for outer, inner in mounts.items() if outer.startswith("./compose")}
    assert f"--config.file={inside['./compose/prometheus.yml']}" in SERVICES["prometheus"]["command"]
    assert PROMETHEUS["rule_files"] == ["alerts.yml"], "beside it"
    assert inside["./compose/alerts.yml"].rpartition("/")[0] == inside["./compose/prometheus.yml"].rpartition("/")[0]
    provider = yaml.safe_load((ROOT / "compose" / "grafana" / "provider.yml").read_text())["providers"][0]
    assert inside["./compose/grafana/headrace.json"].startswith(provider["options"]["path"] + "/")
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == inside["./compose/grafana/headrace.json"]
    assert inside["./compose/grafana/datasource.yml"].startswith("/etc/grafana/provisioning/datasources/")
    assert inside["./compose/grafana/provider.yml"].startswith("/etc/grafana/provisioning/dashboards/")


def test_every_panel_asks_the_datasource_that_is_provided_and_says_what_it_shows() -> None:
    (source,) = yaml.safe_load((ROOT / "compose" / "grafana" / "datasource.yml").read_text())["datasources"]
    ((_, _, inner),) = published(SERVICES["prometheus"])
    assert source["url"] == f"http://prometheus:{inner}"
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        asks = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(one == {"type": "prometheus", "uid": source["uid"]} for one in asks)
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert all(target["legendFormat"] for target in panel["targets"])


def test_no_panel_covers_another() -> None:
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for a, b in combinations(boxes, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart


def test_every_alert_says_what_is_wrong_and_what_to_do_and_is_tested() -> None:
    tested = {
        one["alertname"]
        for test in yaml.safe_load((ROOT / "tests" / "compose" / "alerts_test.yml").read_text())["tests"]
        for one in test.get("alert_rule_test", ())
        if one["exp_alerts"]
    }
    assert {rule["alert"] for rule in RULES} == tested
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "warn")
