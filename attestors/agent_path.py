"""Agent path templates: where under `/spire/agent` a node's agent stands, as SPIRE's `agent_path_template` says it.

A template is literal text with fields: `/{{ .PluginName }}/{{ .Fingerprint }}`. Of Go's template language only fields
are understood. What a field is replaced with comes from the node's evidence and so from a stranger: it may only be a
part of one path segment (S32, CVE-2021-27099), and it never decides the first segment, which says which attestor
vouches for the agent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from spiffe_core.errors import ConfigError, Forbidden

MAX_TEMPLATE = 1024
AGENT_PREFIX = "/spire/agent"
PLUGIN_NAME = "PluginName"
_FIELD = re.compile(r"\{\{-?\s*\.([A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z0-9_-]+)*)\s*-?\}\}")
_VALUE = re.compile(r"[A-Za-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class AgentPathTemplate:
    """A checked template. `parts` alternates literal text and field names, beginning and ending with text."""

    parts: tuple[str, ...]
    plugin: str

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        plugin: str,
        known: Callable[[str], bool],
        others: frozenset[str] = frozenset(),
        field: str = "agent_path_template",
    ) -> AgentPathTemplate:
        """Check a template of the attestor `plugin`, whose fields are those that `known` says yes to.

        `others` are the names of other attestors, which this one may not speak for.

        Raises:
            ConfigError: with `field` and the rule.
        """
        if not text.startswith("/") or len(text) > MAX_TEMPLATE:
            raise ConfigError(
                f'{field}: must begin with "/" and have at most {MAX_TEMPLATE} characters, for example '
                '"/{{ .PluginName }}/{{ .Fingerprint }}"',
                field=field,
            )
        parts = tuple(_FIELD.split(text))
        if any("{" in literal or "}" in literal for literal in parts[::2]):
            raise ConfigError(
                f'{field}: only fields such as "{{{{ .Fingerprint }}}}" are understood, no functions', field=field
            )
        for name in parts[1::2]:
            if name != PLUGIN_NAME and not known(name):
                raise ConfigError(f"{field}: there is no field .{name}", field=field)
        if all(name == PLUGIN_NAME for name in parts[1::2]):
            raise ConfigError(f"{field}: needs a field that differs between nodes, or all would be one", field=field)
        template = cls(parts, plugin)
        template._check_shape(others, field)
        return template

    def render(self, value_of: Callable[[str], str]) -> str:
        """The agent's path; `value_of` gives a field's value for this node, "" when it has none.

        Raises:
            Forbidden: a value is missing or is not a part of one path segment.
        """
        values = dict.fromkeys(self.parts[1::2], "")
        for name in values:
            value = self.plugin if name == PLUGIN_NAME else value_of(name)
            if not _VALUE.fullmatch(value):
                what = "is missing" if not value else "holds characters that no path segment may have"
                raise Forbidden(f"failed to attest: .{name} of the agent path template {what}", name=name)
            values[name] = value
        path = self._filled(lambda name: values[name])
        if any(segment in {".", ".."} for segment in path.split("/")):
            raise Forbidden("failed to attest: a segment of the agent's path would be a dot segment")
        return f"{AGENT_PREFIX}{path}"

    def _filled(self, value_of: Callable[[str], str]) -> str:
        return "".join(value_of(part) if index % 2 else part for index, part in enumerate(self.parts))

    def _check_shape(self, others: frozenset[str], field: str) -> None:
        """Fill the template with a harmless value and look at the segments, the first one above all."""
        segments = self._filled(lambda name: self.plugin if name == PLUGIN_NAME else "x").split("/")[1:]
        if any(not _SEGMENT.fullmatch(segment) or segment in {".", ".."} for segment in segments):
            raise ConfigError(
                f"{field}: its segments are made of A-Z a-z 0-9 . _ - and none is empty, . or ..", field=field
            )
        other = self._filled(lambda name: self.plugin if name == PLUGIN_NAME else "y").split("/")[1]
        if len(segments) < 2 or segments[0] != other:  # noqa: PLR2004  # attestor and node
            raise ConfigError(
                f"{field}: the first segment may not depend on the node and another one follows; "
                f'begin with "/{self.plugin}/"',
                field=field,
            )
        if segments[0] in others:
            raise ConfigError(f"{field}: /{segments[0]}/ belongs to the attestor of that name", field=field)
