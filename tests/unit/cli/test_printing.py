"""What is printed: JSON as SPIRE's CLI prints it (A13), and text that cannot harm a terminal."""

import io
import json
import sys
from datetime import timedelta

import pytest
from google.protobuf.wrappers_pb2 import BoolValue, StringValue

from spiffe_core.terminal import printing
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2 as entry_api
from spiffe_core.wire._gen.spire.api.types import entry_pb2, jointoken_pb2, status_pb2


def test_json_is_compact_uses_proto_names_and_shows_unset_fields(capsys):
    printing.print_json(jointoken_pb2.JoinToken(value="t"))
    assert capsys.readouterr().out == '{"value":"t","expires_at":"0"}\n'


def test_absent_messages_are_left_out_and_present_empty_ones_shown():
    assert "spiffe_id" not in printing.as_json(entry_pb2.Entry())
    assert printing.as_json(entry_pb2.Entry(spiffe_id={}))["spiffe_id"] == {"trust_domain": "", "path": ""}


def test_fields_come_in_the_order_of_the_contract():
    entry = entry_pb2.Entry(created_at=1, id="x", selectors=[{"value": "v", "type": "t"}])
    tree = printing.as_json(entry_api.ListEntriesResponse(entries=[entry], next_page_token="n"))
    order = [field.name for field in entry_pb2.Entry.DESCRIPTOR.fields]
    assert list(tree["entries"][0]) == [name for name in order if name in tree["entries"][0]]
    assert list(tree) == ["entries", "next_page_token"]
    assert list(tree["entries"][0]["selectors"][0]) == ["type", "value"]


def test_wrappers_keep_their_own_json():
    message = agent_pb2.ListAgentsRequest(filter={"by_banned": BoolValue(value=False)})
    assert printing.as_json(message)["filter"]["by_banned"] is False
    wanted = entry_api.ListEntriesRequest(filter={"by_hint": StringValue(value="")})
    assert printing.as_json(wanted)["filter"]["by_hint"] == ""


def test_several_messages_are_an_array(capsys):
    printing.print_json(status_pb2.Status(code=1), status_pb2.Status(message="m"))
    assert json.loads(capsys.readouterr().out) == [{"code": 1, "message": ""}, {"code": 0, "message": "m"}]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nEntry ID : forged", "a\\nEntry ID : forged"),
        ("\r\x00", "\\r\\x00"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}x", "\\u202ex"),
        ("\N{SNOWMAN}", "\N{SNOWMAN}"),
    ],
)
def test_text_from_elsewhere_cannot_move_the_cursor(text, shown, capsys):
    assert printing.clean(text) == shown
    printing.print_block([("Hint", text)])
    assert capsys.readouterr().out == f"Hint             : {shown}\n\n"


@pytest.mark.parametrize(
    ("count", "line"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries"), (1_000_000, "1000000 entries")]
)
def test_count_lines(count, line):
    assert printing.count_line(count, "entry", "entries") == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m 59s"),
        (3600, "1h"),
        (90_061, "1d 1h"),
        (-5, "0s"),
        (86_400, "1d"),
    ],
)
def test_spans_have_two_units(seconds, text):
    assert printing.span(timedelta(seconds=seconds)) == text


def test_times_no_calendar_holds_stay_numbers():
    assert printing.timestamp(0) == "1970-01-01 00:00:00 UTC"
    assert printing.timestamp(2**62) == str(2**62)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def records():
    return ["a", "b"]


def show(records, monkeypatch, columns):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    printing.print_records(
        records, lambda name: [("Name", name)], ("Name", "Value"), lambda name: [name * 10, "x\x1b\ny"]
    )
    return screen.getvalue()


def test_several_records_are_a_table_on_a_wide_terminal(records, monkeypatch):
    text = show(records, monkeypatch, 80)
    assert "aaaaaaaaaa" in text
    assert "Name  " in text
    assert "Name             :" not in text
    assert "x\\x1b" in text


def test_a_table_that_does_not_fit_is_blocks(records, monkeypatch):
    assert "Name             : a\n" in show(records, monkeypatch, 15)


def test_one_record_is_a_block(monkeypatch):
    assert "Name             : a\n" in show(["a"], monkeypatch, 80)


def test_programs_read_blocks(records, capsys):
    printing.print_records(records, lambda name: [("Name", name)], ("Name",), lambda name: [name])
    assert capsys.readouterr().out == "Name             : a\n\nName             : b\n\n"
