"""The metrics facade: SPIRE's names to the letter, bounded, and without its library until the page is asked for."""

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from spiffe_core.runtime.metrics import Metrics, resident_bytes


def samples(metrics):
    """(name, labels) -> value of the page as Prometheus' own parser reads it."""
    families = text_string_to_metric_families(metrics.page().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


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
    assert len(metrics._counters) + len(metrics._timers) <= 11
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
