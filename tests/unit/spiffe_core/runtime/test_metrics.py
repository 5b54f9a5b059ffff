"""The metrics facade: SPIRE's names to the letter, bounded, and without its library until the page is asked for."""

import math
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from spiffe_core.runtime.metrics import WINDOW, WINDOW_SECONDS, Metrics, resident_bytes


def samples(metrics):
    """(name, labels) -> value of the page as Prometheus' own parser reads it."""
    families = text_string_to_metric_families(metrics.page().decode())
    found = {}
    for sample in (one for family in families for one in family.samples):
        assert sample.name.startswith("process_") or sample.labels.pop("host")
        found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_a_call_is_a_counter_without_suffix_and_a_summary_in_milliseconds():
    metrics = Metrics("spire_server")
    metrics.observe("rpc_x", 0.25, status="OK")
    metrics.observe("rpc_x", 0.75, status="OK")
    metrics.observe("rpc_x", 0.5, status="NotFound")
    found = samples(metrics)
    assert found["spire_server_rpc_x", (("status", "OK"),)] == 2.0
    assert found["spire_server_rpc_x", (("status", "NotFound"),)] == 1.0
    assert found["spire_server_rpc_x_elapsed_time_count", (("status", "OK"),)] == 2.0
    assert found["spire_server_rpc_x_elapsed_time_sum", (("status", "OK"),)] == 1000.0


def test_events_are_counted_and_gauges_read_when_the_page_is_made():
    metrics = Metrics("spire_agent")
    level = [1.0]
    metrics.gauge("level", lambda: level[0])
    metrics.gauge("started", lambda: [((("version", 'a"b\n'),), 1.0)])
    metrics.add("things")
    metrics.add("things", 2.0)
    level[0] = 7.0
    found = samples(metrics)
    assert found["spire_agent_things", ()] == 3.0
    assert found["spire_agent_level", ()] == 7.0
    assert found["spire_agent_started", (("version", 'a"b\n'),)] == 1.0
    assert found["spire_agent_runtime_alloc_bytes", ()] > 1e6
    assert found["spire_agent_runtime_heap_objects", ()] > 1000


def test_every_sample_names_the_machine():
    metrics = Metrics("p", host="node-7")
    metrics.observe("t", 0.1, status="OK")
    metrics.sample("s", 3.0)
    metrics.add("c")
    lines = [line for line in metrics.page().decode().splitlines() if line.startswith("p_")]
    assert lines
    assert all('host="node-7"' in line for line in lines)


def test_quantiles_are_those_of_the_latest_observations_and_forget_old_ones():
    """SPIRE's dashboards show 0.5, 0.9 and 0.99."""
    now = [1000.0]
    metrics = Metrics("p", monotonic=lambda: now[0])
    for number in range(1, 101):
        metrics.observe("t", number / 1000, status="OK")
        metrics.sample("s", number)
    found = samples(metrics)

    def shown(name, quantile):
        return next(v for (n, labels), v in found.items() if n == name and dict(labels).get("quantile") == quantile)

    for name in ("p_t_elapsed_time", "p_s"):
        assert [shown(name, one) for one in ("0.5", "0.9", "0.99")] == [50.0, 90.0, 99.0]
    assert found["p_s_sum", ()] == 5050.0
    now[0] += WINDOW_SECONDS + 1
    found = samples(metrics)
    assert math.isnan(shown("p_s", "0.5"))
    assert found["p_s_count", ()] == 100.0
    for _ in range(10 * WINDOW):
        metrics.sample("s", 1.0)
    assert len(metrics._summaries["s", ()].latest) == WINDOW


def test_every_name_has_one_type_line():
    metrics = Metrics("p")
    for status in ("OK", "NotFound"):
        metrics.observe("b", 0.1, status=status)
        metrics.observe("a", 0.1, status=status)
    lines = [line for line in metrics.page().decode().splitlines() if line.startswith("# TYPE p_")]
    assert len(lines) == len(set(lines))
    assert "# TYPE p_a untyped" in lines
    assert "# TYPE p_a_elapsed_time summary" in lines


def test_the_number_of_series_is_bounded_whatever_labels_come():
    """S65."""
    metrics = Metrics("p", most_series=10)
    for number in range(1000):
        metrics.add("c", label=str(number))
        metrics.observe("t", 1.0, label=str(number))
    assert len(metrics._counters) + len(metrics._summaries) <= 11
    assert metrics.dropped > 1900
    metrics.add("c", label="0")
    assert samples(metrics)["p_c", (("label", "0"),)] == 2.0


def test_the_library_is_not_loaded_until_the_page_is_asked_for():
    code = (
        "import sys; from spiffe_core.runtime.metrics import Metrics; m = Metrics('p'); m.observe('x', 1.0, status='OK');"
        "assert 'prometheus_client' not in sys.modules; m.page(); assert 'prometheus_client' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_memory_of_this_process_is_known():
    assert resident_bytes() > 1e6
