"""Metrics of several replicas as one text."""

from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import EngineMetrics, HTTPMetrics, join


def test_joined_texts_have_every_family_once_and_every_sample() -> None:
    one, other, http = EngineMetrics("emoji"), EngineMetrics("emoji"), HTTPMetrics()
    one.pictures.inc(3)
    other.pictures.inc(4)
    one.queue_length.set(2)
    one.count_refusal("queue_full")
    one.step_seconds.observe(0.02)
    http.count_response("/v1/models", 200, 0.5)
    texts = [({"replica": "a"}, one.text()), ({"replica": "b"}, other.text()), ({}, http.text())]
    text = join(texts).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }
    emoji = ("model", "emoji")
    assert values["dalle_pictures_total", emoji, ("replica", "a")] == 3
    assert values["dalle_pictures_total", emoji, ("replica", "b")] == 4
    assert values["dalle_queue_length", emoji, ("replica", "a")] == 2
    assert values["dalle_refusals_total", emoji, ("reason", "queue_full"), ("replica", "a")] == 1
    assert values["dalle_step_seconds_bucket", ("le", "0.025"), emoji, ("replica", "a")] == 1
    assert values["dalle_http_requests_total", ("path", "/v1/models"), ("status", "200")] == 1
