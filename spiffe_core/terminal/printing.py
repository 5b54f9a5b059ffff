"""Output: JSON exactly as SPIRE prints it, and text for people.

JSON is compact, uses the names of the .proto files, shows fields that are not set (but no absent messages), and is an
array when there are several messages. Text that came from elsewhere never reaches a terminal with control characters
in it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from spiffe_core.terminal.flags import F, flag

Row = tuple[str, str]
_GAP = 3
"""Columns between two columns of a table."""


def output_flag(function: F) -> F:
    """The flag `-output pretty|json`."""
    return flag(
        "--output",
        type=click.Choice(["pretty", "json"]),
        default="pretty",
        show_default=True,
        help="For people, or for programs.",
    )(function)


def as_json(message: Message) -> dict[str, Any]:
    """A message in JSON's terms, its fields in the order of the .proto file."""
    from google.protobuf import json_format  # as large as the rest of protobuf: text for people needs none of it

    tree: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _in_order(tree, message.DESCRIPTOR)


def _in_order(tree: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    if descriptor.full_name.startswith("google.protobuf."):  # these have a JSON of their own
        return tree
    return {name: _nested(tree[name], field) for name, field in descriptor.fields_by_name.items() if name in tree}


def _nested(value: Any, field: FieldDescriptor) -> Any:
    inner = field.message_type
    if inner is None or inner.GetOptions().map_entry:
        return value
    if isinstance(value, list):
        return [_in_order(item, inner) for item in value]
    return _in_order(value, inner) if isinstance(value, dict) else value


def print_json(*values: Message | dict[str, Any]) -> None:
    """One value as an object, several as an array."""
    trees = [as_json(value) if isinstance(value, Message) else value for value in values]
    click.echo(json.dumps(trees[0] if len(trees) == 1 else trees, separators=(",", ":"), ensure_ascii=False))


def clean(text: str) -> str:
    """`text` without control characters: what a peer sent may not move the cursor or start a new line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def count_line(count: int, singular: str, plural: str) -> str:
    """`1 entry`, `2 entries`."""
    return f"{count} {singular if count == 1 else plural}"


def print_block(rows: Iterable[Row], *, err: bool = False) -> None:
    """Names and values, aligned at the colon, with an empty line behind."""
    for name, value in rows:
        click.echo(f"{name:<17}: {clean(value)}", err=err)
    click.echo(err=err)


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def print_records(
    records: Sequence[Any], block: Callable[[Any], list[Row]], columns: Sequence[str], cells: Callable[[Any], list[str]]
) -> None:
    """Several records: a table on a terminal that is wide enough, else blocks, which programs can read line by line."""
    rows = [cells(record) for record in records] if len(records) > 1 and is_terminal() else []
    if rows and table_width(columns, rows) <= shutil.get_terminal_size().columns:
        print_table(columns, rows)
        return
    for record in records:
        print_block(block(record))


def table_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The columns a table needs if nothing in it is folded."""
    widest = [
        max(len(clean(line)) for cell in column for line in cell.split("\n"))
        for column in zip(columns, *rows, strict=True)
    ]
    return sum(widest) + _GAP * (len(widest) - 1)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; its values are never folded or cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*("\n".join(clean(line) for line in cell.split("\n")) for cell in row))
    console = Console(width=table_width(columns, rows) + _GAP, markup=False, highlight=False, emoji=False)
    console.print(table)


def timestamp(seconds: int) -> str:
    """Unix seconds as UTC, such as `2026-01-31 12:00:00 UTC`; what no calendar holds stays a number."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def span(length: timedelta) -> str:
    """A length of time in its two largest units: `3d 4h`, `59m 58s`, `0s`."""
    seconds = max(int(length.total_seconds()), 0)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, seconds = divmod(seconds, size)
        if amount or (parts and len(parts) == 1):
            parts.append(f"{amount}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0")) or "0s"


def spiffe_id_text(message: Any) -> str:
    """A `spire.api.types.SPIFFEID` as people write it."""
    return f"spiffe://{message.trust_domain}{message.path}"
