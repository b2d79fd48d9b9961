"""Prometheus' text: counters, a histogram that adds up, labels that cannot break a line."""

import re

from anomaly_lib.serving.metrics import BUCKETS, Metrics

LINE = re.compile(r'^[a-z_]+(\{([a-z]+="(\\.|[^"\\\n])*",?)+\})? -?[0-9.e+-]+$')


def test_the_text() -> None:
    metrics = Metrics()
    for seconds in (0.004, 0.005, 0.3, 99.0):
        metrics.request("/predict", 200, seconds)
    metrics.request("/predict", 422, 0.002)
    metrics.request("/health", 200, 0.002)
    metrics.request("/some/where", 404, 0.001)
    for anomalous in (True, False, False, None):
        metrics.image('a "b"\n\\c', anomalous)
    text = metrics.text({"a": 3}, {"a": 2}, {"a": 1})
    lines = text.splitlines()
    assert text.endswith("\n")
    assert [line for line in lines if not line.startswith("# ") and not LINE.match(line)] == []
    assert 'anomaly_lib_requests_total{path="/predict",code="200"} 4' in lines
    assert 'anomaly_lib_requests_total{path="other",code="404"} 1' in lines
    assert r'anomaly_lib_images_total{model="a \"b\"\n\\c",decision="normal"} 2' in lines
    assert 'anomaly_lib_queue_depth{model="a"} 3' in lines
    buckets = [int(line.split()[-1]) for line in lines if line.startswith("anomaly_lib_predict_seconds_bucket")]
    assert len(buckets) == len(BUCKETS) + 1
    assert buckets == sorted(buckets)
    assert buckets[0] == 3  # 5 ms belongs to the first
    assert buckets[-1] == 5
    assert "anomaly_lib_predict_seconds_count 5" in lines
    kinds = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(kinds) == len(set(kinds))
