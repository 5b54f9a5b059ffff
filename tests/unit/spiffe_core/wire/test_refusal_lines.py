"""Which refused connections get a line in the log: a bound whoever connects how often."""

from spiffe_core.wire.refusal_lines import LINES, WINDOW_SECONDS, RefusalLines


def test_an_address_has_a_line_in_a_window_and_the_next_says_how_many_had_none():
    """S50."""
    lines = RefusalLines()
    told = [lines.room("192.0.2.1", float(second)) for second in range(60)]
    assert told == [0] + [None] * 59
    assert lines.room("192.0.2.2", 59.5) == 59
    assert lines.room("192.0.2.1", 60.0) == 0


def test_all_addresses_together_have_a_bound():
    """S50: as many addresses as a botnet has, and no more is kept of them than lines were written."""
    lines = RefusalLines()
    told = [lines.room(f"net {number}", 0.0) for number in range(100_000)]
    assert told.count(0) == LINES
    assert told.count(None) == 100_000 - LINES
    assert len(lines._told) == LINES
    assert lines.room("net 0", WINDOW_SECONDS) == 100_000 - LINES


def test_processes_of_this_machine_have_the_bound_of_all():
    lines = RefusalLines(most=3)
    assert [lines.room("", 1.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert lines.room("", 61.0) == 2
