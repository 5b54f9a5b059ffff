"""Files of entries: what `-data` and `-file` read.

`{"entries": [...]}` as SPIRE's CLI documents it, and what `entry show -output json` prints, so that entries can be
carried from one server to another. Unknown keys are refused by name: a misspelt key would silently change an identity.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from identity_server.cli import filters
from spiffe_core.terminal.failures import Failure
from spiffe_core.wire._gen.spire.api.types import entry_pb2

MAX_BYTES: Final = 64 * 1024 * 1024

_OTHER_NAMES: Final[dict[str, str]] = {"entry_id": "id", "entryExpiry": "expires_at", "entry_expiry": "expires_at"}
_FROM_SERVER: Final = {"revision_number", "created_at", "revisionNumber", "createdAt"}


def _document(file: str) -> dict[str, Any]:
    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}", "give a readable JSON file, or - for standard input") from None
    if len(data) > MAX_BYTES:
        raise Failure(f"{name}: is larger than {MAX_BYTES} bytes", "split the file")
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{name}: is not JSON: {error}", "see the example in --help") from None
    if not isinstance(tree, dict):
        raise Failure(f"{name}: must be a JSON object", 'write {"entries": [...]}')
    return tree


def read_ids(file: str) -> list[str]:
    """The ids in `{"ids": [...]}`."""
    ids = _document(file).get("ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(item, str) for item in ids):
        raise Failure(f"{file}: ids: must be a list of entry ids", 'write {"ids": ["...", "..."]}')
    return ids


def read_entries(file: str) -> list[entry_pb2.Entry]:
    """The entries in `{"entries": [...]}`."""
    items = _document(file).get("entries")
    if not isinstance(items, list) or not items:
        raise Failure(f"{file}: entries: must be a list of objects", 'write {"entries": [{...}, {...}]}')
    return [_entry(item, f"{file}: entries[{index}]") for index, item in enumerate(items)]


def _entry(item: object, place: str) -> entry_pb2.Entry:
    if not isinstance(item, dict):
        raise _wrong(place, "must be an object")
    entry = entry_pb2.Entry()
    for raw, value in item.items():
        given = str(raw)
        where = f"{place}.{given}"
        if given in _FROM_SERVER:
            continue
        key = _OTHER_NAMES.get(given, given)
        fill = _FILL.get(key)
        if fill is None:
            near = difflib.get_close_matches(given, _FILL, n=1)
            raise _wrong(where, f"is not a field of an entry{f'; did you mean {near[0]}?' if near else ''}")
        fill(entry, key, value, where)
    return entry


def _wrong(place: str, rule: str) -> Failure:
    return Failure(f"{place}: {rule}", f"known fields: {', '.join(_FILL)}")


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong(place, "must be text")
    return value


def _boolean(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(place, "must be true or false")
    return value


def _texts(value: object, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(place, "must be a list of text")
    return value


def _set_text(entry: entry_pb2.Entry, key: str, value: object, place: str) -> None:
    setattr(entry, key, _text(value, place))


def _set_boolean(entry: entry_pb2.Entry, key: str, value: object, place: str) -> None:
    setattr(entry, key, _boolean(value, place))


def _set_texts(entry: entry_pb2.Entry, key: str, value: object, place: str) -> None:
    getattr(entry, key).extend(_texts(value, place))


def _set_id(entry: entry_pb2.Entry, key: str, value: object, place: str) -> None:
    getattr(entry, key).CopyFrom(filters.spiffe_id(_id_text(value, place), place))


def _set_selectors(entry: entry_pb2.Entry, _key: str, value: object, place: str) -> None:
    entry.selectors.extend(filters.selectors(_selector_texts(value, place)))


def _set_number(entry: entry_pb2.Entry, key: str, value: object, place: str) -> None:
    """Whole numbers; the ones of 64 bits are text in the JSON that servers print."""
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) <= len(str(-(2**63))):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(place, "must be a whole number")
    try:
        setattr(entry, key, value)
    except ValueError:
        raise _wrong(place, "is out of range") from None


def _id_text(value: object, place: str) -> str:
    if isinstance(value, dict) and set(value) <= {"trust_domain", "path"}:
        parts = [value.get("trust_domain", ""), value.get("path", "")]
        if all(isinstance(part, str) for part in parts):
            return f"spiffe://{parts[0]}{parts[1]}"
    return _text(value, place)


def _selector_texts(value: object, place: str) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(place, "must be a list")
    texts = []
    for index, item in enumerate(value):
        if isinstance(item, dict) and set(item) == {"type", "value"}:
            item = f"{_text(item['type'], place)}:{_text(item['value'], place)}"  # noqa: PLW2901  # two spellings of one thing
        texts.append(_text(item, f"{place}[{index}]"))
    return texts


def _set_attributes(entry: entry_pb2.Entry, _key: str, value: object, place: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(place, "must be an object")
    for key, switch in value.items():
        if key not in {"disable_x509_svid_prefetch", "jwt_svid_include_jti"}:
            raise _wrong(f"{place}.{key}", "is not an attribute")
        setattr(entry.additional_attributes, key, _boolean(switch, f"{place}.{key}"))


_FILL: Final[dict[str, Callable[[entry_pb2.Entry, str, object, str], None]]] = {
    "id": _set_text,
    "spiffe_id": _set_id,
    "parent_id": _set_id,
    "selectors": _set_selectors,
    "x509_svid_ttl": _set_number,
    "jwt_svid_ttl": _set_number,
    "federates_with": _set_texts,
    "admin": _set_boolean,
    "downstream": _set_boolean,
    "expires_at": _set_number,
    "dns_names": _set_texts,
    "store_svid": _set_boolean,
    "hint": _set_text,
    "additional_attributes": _set_attributes,
}
"""How each field of an entry is read, by its name in the .proto file."""
