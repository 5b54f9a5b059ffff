"""TOML to one frozen tree of typed settings, and errors that name file, key, rule and the nearest valid key.

A daemon describes its settings as `Section` classes; `load_settings` reads the file, lays the flags over it and
returns the tree. Unknown keys are errors. Secrets are given as paths of files, never as values. pydantic is imported
here and in the daemons' `settings.py` modules, nowhere else.
"""

from __future__ import annotations

import difflib
import errno
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from spiffe_core.errors import ConfigError, IdentityError
from spiffe_core.runtime.environment import expanded
from spiffe_core.runtime.settings_kinds import mistaken

MAX_FILE_BYTES = 1024 * 1024
GUIDE = "docs/configuration.md"
_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile(r"(?:\d+(?:ms|[dhms]))+")
_PART = re.compile(r"(\d+)(ms|[dhms])")
_HCL = re.compile(
    r'^\s*(?:server|agent|plugins|telemetry|health_checks)\s*(?:=\s*)?\{|^\s*\w+\s+"[^"]*"\s*\{', re.MULTILINE
)
_HALF = re.compile(r"^\s*(server|agent)\s*(?:=\s*)?\{", re.MULTILINE)
_PAGE_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,127}")
_MAX_DURATION = timedelta(days=365 * 100)

S = TypeVar("S", bound="Section")
T = TypeVar("T")


class Section(BaseModel):
    """One table of a settings file: frozen, and strict about keys and types."""

    file_kind: ClassVar[str] = ""
    """Of a whole file: its name in `settings_kinds.KINDS`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )


def parse_duration(value: object) -> timedelta:
    """Read a duration such as `"1h30m"`, `"90s"` or `"500ms"`; each unit at most once, the larger first."""
    if isinstance(value, timedelta):
        return value
    rule = 'write a duration as text with units, for example "1h30m", "90s" or "500ms"'
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError(rule)
    parts = [(int(number), _UNITS[unit]) for number, unit in _PART.findall(value[:64])]
    sizes = [size for _, size in parts]
    if sizes != sorted(set(sizes), reverse=True):
        raise ValueError(rule)
    milliseconds = sum(number * size for number, size in parts)
    if milliseconds > _MAX_DURATION // timedelta(milliseconds=1):
        raise ValueError("a duration is at most 100 years")
    return timedelta(milliseconds=milliseconds)


def format_duration(value: timedelta) -> str:
    """The inverse of `parse_duration`, in hours and smaller units."""
    rest = value // timedelta(milliseconds=1)
    text = ""
    for unit in ("h", "m", "s", "ms"):
        number, rest = divmod(rest, _UNITS[unit])
        if number:
            text += f"{number}{unit}"
    return text or "0s"


def _positive(value: timedelta) -> timedelta:
    if value < timedelta(seconds=1):
        raise ValueError("must be at least 1s")
    return value


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
"""A settings field of type timedelta, written `"1h30m"`."""


def _parse_lifetime(value: object) -> timedelta:
    span = _positive(parse_duration(value))
    if span.microseconds:
        raise ValueError("must be whole seconds")
    return span


Lifespan = Annotated[timedelta, BeforeValidator(_parse_lifetime), PlainSerializer(format_duration)]
"""A duration of whole seconds, at least one: the life of a certificate."""


def _parse_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("write the path of a file or directory as text")
    return Path(value).expanduser()


FilePath = Annotated[Path, BeforeValidator(_parse_path), PlainSerializer(str)]
"""A settings field that holds a path; `~` is the user's home."""


def as_tuple(value: object) -> object:
    """TOML's array as the tuple a frozen settings field holds; a `BeforeValidator`."""
    return tuple(value) if isinstance(value, list) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
"""A settings field that holds an array of text."""


def parsed_by(parse: Callable[[str], T]) -> BeforeValidator:
    """A validator from one of our own parsers: its IdentityError becomes the rule in the message."""

    def validate(value: object) -> object:
        if isinstance(value, (bool, int, float, list, dict)):
            raise ValueError("write it as text, in quotation marks")  # noqa: TRY004 - pydantic reports no TypeError
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except IdentityError as error:
            raise ValueError(error.public) from None

    return BeforeValidator(validate)


def _page_path(value: str) -> str:
    if not _PAGE_PATH.fullmatch(value):
        raise ValueError('must be a path of letters, digits and "-._/", for example "/live"')
    return value


PagePath = Annotated[str, AfterValidator(_page_path)]


class HealthCheckSection(Section):
    """[health_checks]: a plain HTTP listener for probes, off by default. Both daemons have it, with SPIRE's keys."""

    listener_enabled: bool = False
    bind_address: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    bind_port: int = Field(default=8080, ge=0, le=65535)
    live_path: PagePath = "/live"
    ready_path: PagePath = "/ready"

    @model_validator(mode="after")
    def _two_paths(self) -> Self:
        if self.live_path == self.ready_path:
            raise ValueError("live_path and ready_path must differ")
        return self


class PrometheusSection(Section):
    """[telemetry.prometheus]: where Prometheus reads metrics over plain HTTP."""

    host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    port: int = Field(ge=0, le=65535)


class TelemetrySection(Section):
    """[telemetry]: without a table for a collector nothing is measured."""

    prometheus: PrometheusSection | None = None


def _collector(text: str) -> str:
    scheme, _, rest = text.partition("://")
    if scheme not in {"http", "https"} or not rest.partition("/")[0] or not text.isascii() or not text.isprintable():
        raise ValueError('must be a URL, for example "http://127.0.0.1:4318/v1/traces"')
    if "@" in rest.partition("/")[0]:
        raise ValueError("must not contain a user or a password")
    return text


class TracingSection(Section):
    """[tracing]: where spans go, over OTLP/HTTP; needs the extra `muniment[otel]`.

    Without this table nothing is traced.
    """

    endpoint: Annotated[str, Field(max_length=2_048), AfterValidator(_collector)]
    sample_ratio: float = Field(default=1.0, ge=0.0, le=1.0, strict=False)
    interval_seconds: float = Field(default=5.0, ge=0.1, le=300.0, strict=False)
    timeout_seconds: float = Field(default=5.0, ge=0.1, le=60.0, strict=False)
    ca_file: FilePath | None = None


def load_settings(
    model: type[S],
    path: str | Path,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> S:
    """Read `path` as `model`, with `overrides` ("ca.ttl" -> value, None = not given) laid over it.

    Variables in the file are filled in from `environ`, if it is given.

    Raises:
        ConfigError: one line for each mistake: file, key, rule, and the nearest valid key.
    """
    return build_settings(model, read_toml(path, environ), source=str(path), overrides=overrides)


def build_settings(
    model: type[S], document: Mapping[str, Any], *, source: str, overrides: Mapping[str, object] | None = None
) -> S:
    """Check `document` against `model`; `source` is how messages call the document."""
    if model.file_kind and (wrong := mistaken(model.file_kind, document)):
        raise ConfigError(f"{source}: {wrong}; see {GUIDE}", field="config")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    merged = _overlay(document, given, source)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        lines = [
            _explain(model, detail, source, given) for detail in error.errors(include_url=False, include_context=False)
        ]
        raise ConfigError("\n".join(lines), field=_dotted(error.errors()[0]["loc"])) from None


def read_toml(path: str | Path, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read a TOML file, with variables of `environ` filled in.

    SPIRE's HCL is recognised and refused with a pointer to the guide.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        advice = "let this user read it" if error.errno == errno.EACCES else "give the path of a TOML file"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; {advice}", field="config") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes; this cannot be a settings file", field="config")
    try:
        text = raw.decode()
        if environ is not None:
            text = expanded(text, environ, str(path))
        return tomllib.loads(text)
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}: is not UTF-8 text; settings are written in TOML, see {GUIDE}", field="config"
        ) from None
    except tomllib.TOMLDecodeError as error:
        if _HCL.search(text):
            half = _HALF.search(text)
            whose = f" of {'a server' if half[1] == 'server' else 'an agent'}" if half else ""
            raise ConfigError(
                f"{path}: this looks like SPIRE's HCL configuration{whose}; settings are written in TOML here. "
                f"{GUIDE} shows each SPIRE key beside ours",
                field="config",
            ) from None
        raise ConfigError(f"{path}: not valid TOML: {error}; see {GUIDE}", field="config") from None


def resolved(settings: Section) -> dict[str, Any]:
    """The whole tree with every default filled in, ready to print as JSON."""
    return settings.model_dump(mode="json")


def _overlay(document: Mapping[str, Any], given: Mapping[str, object], source: str) -> dict[str, Any]:
    merged: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in document.items()}
    for dotted, value in given.items():
        *tables, leaf = dotted.split(".")
        place = merged
        for table in tables:
            inner = place.get(table, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{source}: {table}: must be a table", field=table)
            place[table] = dict(inner)
            place = place[table]
        place[leaf] = value
    return merged


def _dotted(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc)


_KINDS: Final = {
    "tuple_type": 'write an array, for example ["a", "b"]',
    "dict_type": "write a table",
    "model_type": "write a table",
    "string_type": "write it as text, in quotation marks",
    "int_type": "write a whole number, without quotation marks",
    "int_from_float": "write a whole number",
    "float_type": "write a number, without quotation marks",
    "bool_type": "write true or false, without quotation marks",
}
"""Kinds of value as TOML calls them, by pydantic's name for the error."""


def _explain(model: type[Section], detail: ErrorDetails, source: str, given: Mapping[str, object]) -> str:
    """One line: where, which key, which rule, and what may have been meant."""
    loc = detail["loc"]
    key = _dotted(loc)
    where = "command line" if key in given else source
    if detail["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key{_suggest(model, loc)}"
    if detail["type"] == "missing":
        return f"{where}: {key}: is required"
    rule = _KINDS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").removeprefix(f"{key}: ")
    about = f"{where}: {key}" if key else where  # a rule between several keys names them itself
    return f"{about}: {rule[:1].lower()}{rule[1:]}"


def _suggest(model: type[Section], loc: tuple[int | str, ...]) -> str:
    """The nearest valid key: first in the same table, then the same or a similar name in any table."""
    leaf = str(loc[-1])
    table = _dotted(tuple(part for part in loc[:-1] if isinstance(part, str)))
    siblings = [key for key in _keys(model) if key.rpartition(".")[0] == table]
    near = difflib.get_close_matches(leaf, [key.rpartition(".")[2] for key in siblings], n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    every = {key.rpartition(".")[2]: key for key in _keys(model)}
    near = difflib.get_close_matches(leaf, list(every), n=1)
    if near:
        return f"; did you mean {every[near[0]]!r}?"
    names = ", ".join(sorted(key.rpartition(".")[2] for key in siblings))
    return f"; valid keys here are: {names}" if names else ""


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for attribute, info in model.model_fields.items():
        name = info.alias or attribute
        yield prefix + name
        for candidate in (info.annotation, *get_args(info.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from _keys(candidate, f"{prefix}{name}.")
