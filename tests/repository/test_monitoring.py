"""The files of Prometheus and Grafana use metrics that the service has."""

import re

from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import EngineMetrics, HTTPMetrics, text_of_states
from tests.support.deployment import DASHBOARD, PORT, PROMETHEUS, RAY, SERVICES, default_of, environment_of, load, read


def test_prometheus_reads_what_is_there() -> None:
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    metrics = default_of("DALLE_RAY_METRICS_PORT")
    assert jobs["dalle"]["static_configs"] == [{"targets": [f"head:{PORT}"]}]
    assert jobs["ray"]["static_configs"] == [{"targets": [f"head:{metrics}"]}]
    (workers,) = jobs["ray"]["dns_sd_configs"]
    assert (workers["names"], workers["port"]) == (["worker"], int(metrics))
    assert set(SERVICES["prometheus"]["networks"]) >= set(SERVICES["head"]["networks"])


def test_grafana_finds_its_data_and_its_dashboard() -> None:
    (source,) = load("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    (provider,) = load("deploy/grafana/provisioning/dashboards/dalle.yml")["providers"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = environment_of("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/dalle.json"
    assert set(re.findall(r'"uid": "(\w+)"', read("deploy/grafana/dashboards/dalle.json"))) == {source["uid"], "dalle"}


def labels_of_metrics() -> dict[str, set[str]]:
    """Labels of every sample that the service exports."""
    engine, web = EngineMetrics("emoji"), HTTPMetrics()
    engine.count_refusal("queue_full")
    engine.count_blocked("words")
    web.count_response("/v1/images/generations", 200, 1.0)
    texts = (engine.text(), web.text(), text_of_states({"emoji": "loaded"}))
    families = [family for text in texts for family in text_string_to_metric_families(text)]
    return {sample.name: {*sample.labels} for family in families for sample in family.samples}


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    known = labels_of_metrics()
    agent = (RAY / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text(encoding="utf-8")
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    asked: set[str] = set()
    for expression in [*expressions, DASHBOARD["templating"]["list"][0]["definition"]]:
        (name,) = re.findall(r"\b(?:dalle|ray)_\w+", expression)
        asked.add(name)
        if name.startswith("ray_"):
            assert f'"{name.removeprefix("ray_")}"' in agent, name
            continue
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        labels = {label.strip() for group in grouped for label in group.split(",")}
        assert labels | {*re.findall(r"(\w+)=~", expression)} <= known[name], expression
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known if not name.endswith("_created")}
    assert {re.sub(r"_bucket$", "", name) for name in asked if name.startswith("dalle_")} == families


def test_panels_have_places_and_names_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(taken) == len({*taken}) and max(x for x, _ in taken) < 24
