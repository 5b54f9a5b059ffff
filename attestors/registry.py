"""Finding attestors: one entry-point group per protocol, looked up by name, imported only when named.

Built-in attestors are declared in this distribution's own metadata, exactly as another distribution declares its own:

    [project.entry-points."node_agent.workload_attestors"]
    unix = "attestors.workload.unix:UnixAttestor"

A plugin is a class with a `name`, a frozen dataclass `Settings`, and a constructor `(settings, ports)`; `ports` may be
left out when the plugin needs none. Its settings come from one table of the configuration file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.metadata
import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from attestors.api import NodeProver, NodeVerifier, WorkloadAttestor
from spiffe_core.errors import ConfigError

MAX_OPTIONS = 100
_SIMPLE: dict[object, str] = {bool: "true or false", int: "a whole number", str: "a text"}


class PluginPoint(Protocol):
    """What is used of `importlib.metadata.EntryPoint`."""

    @property
    def name(self) -> str:
        """The plugin's name in the configuration."""
        ...

    @property
    def value(self) -> str:
        """Where it lives: `module:Class`."""
        ...

    def load(self) -> Any:
        """Import it."""
        ...


class Registry:
    """The plugins of one entry-point group."""

    def __init__(self, group: str, protocol: type, points: Iterable[PluginPoint] | None = None) -> None:
        self.group = group
        self._protocol = protocol
        self._points = points

    def names(self) -> tuple[str, ...]:
        """Every name that can be configured, sorted. Nothing is imported."""
        return tuple(sorted({point.name for point in self._declared()}))

    def load(self, name: str) -> type:
        """The class registered as `name`.

        Raises:
            ConfigError: the name is unknown, declared twice, cannot be imported, or is not the protocol.
        """
        found = {point.value: point for point in self._declared() if point.name == name}
        if not found:
            raise ConfigError(
                f"no attestor is called {name!r} in {self.group}; known: {', '.join(self.names()) or 'none'}",
                field=name,
            )
        if len(found) > 1:
            raise ConfigError(
                f"{self.group}: {name!r} is declared by {' and '.join(sorted(found))}; uninstall one of them",
                field=name,
            )
        (point,) = found.values()
        try:
            plugin = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{self.group}: {name!r} ({point.value}) cannot be imported: {error}", field=name
            ) from error
        self._check(name, point.value, plugin)
        loaded: type = plugin
        return loaded

    def build(self, name: str, options: Mapping[str, object] | None = None, ports: object | None = None) -> Any:
        """One configured instance of `name`. `options` is its table of the configuration file."""
        plugin: Any = self.load(name)
        settings = settings_from(plugin.Settings, options or {}, name)
        return plugin(settings) if ports is None else plugin(settings, ports)

    def _declared(self) -> tuple[PluginPoint, ...]:
        if self._points is None:
            self._points = tuple(_installed().select(group=self.group))
        return tuple(self._points)

    def _check(self, name: str, where: str, plugin: Any) -> None:
        """A plugin is refused before it is used, with the rule it breaks."""
        problem = ""
        if not inspect.isclass(plugin):
            problem = "is not a class"
        elif getattr(plugin, "name", None) != name:
            problem = f"calls itself {getattr(plugin, 'name', None)!r}"
        elif not _frozen(getattr(plugin, "Settings", None)):
            problem = "has no frozen dataclass `Settings`"
        else:
            missing = [method for method in _methods(self._protocol) if not callable(getattr(plugin, method, None))]
            if missing:
                problem = f"is not a {self._protocol.__name__}: it lacks {', '.join(missing)}()"
        if problem:
            raise ConfigError(f"{self.group}: {name!r} ({where}) {problem}", field=name)


@functools.cache
def _installed() -> Any:
    """Every group of every distribution, to `select` from: several registries ask, and reading takes a file each."""
    return importlib.metadata.entry_points()


def settings_from(settings: Any, options: Mapping[str, object], name: str) -> Any:
    """Make the frozen `settings` dataclass from a configuration table; unknown keys and wrong types are refused.

    Raises:
        ConfigError: naming `attestors.<name>.<key>`, the rule, and the nearest valid key.
    """
    if len(options) > MAX_OPTIONS:
        raise ConfigError(f"attestors.{name}: more than {MAX_OPTIONS} keys", field=name)
    types = typing.get_type_hints(settings)
    known = [field.name for field in dataclasses.fields(settings) if field.init]
    for key, value in options.items():
        where = f"attestors.{name}.{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
            raise ConfigError(f"{where}: unknown key; {hint}", field=where)
        wanted = types[key]
        if wanted in _SIMPLE and type(value) is not wanted:
            raise ConfigError(f"{where}: must be {_SIMPLE[wanted]}", field=where)
        if wanted == tuple[str, ...] and not _array(value, str):
            raise ConfigError(f"{where}: must be an array of texts", field=where)
        if wanted == tuple[int, ...] and not _array(value, int):
            raise ConfigError(f"{where}: must be an array of whole numbers", field=where)
    try:
        return settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
    except TypeError as error:
        raise ConfigError(f"attestors.{name}: {error}", field=name) from error


def check_tables(tables: Mapping[str, Mapping[str, object]], *registries: Registry) -> None:
    """Hold each attestor's table of a configuration to that attestor's settings. Nothing is opened.

    Raises:
        ConfigError: no attestor of that name, or naming the key and the rule.
    """
    for name, options in tables.items():
        registry = next((one for one in registries if name in one.names()), registries[0])
        plugin: Any = registry.load(name)
        settings_from(plugin.Settings, options, name)


def _array(value: object, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(one) is kind for one in value)


def _frozen(settings: Any) -> bool:
    parameters = getattr(settings, "__dataclass_params__", None)
    return inspect.isclass(settings) and parameters is not None and bool(parameters.frozen)


def _methods(protocol: type) -> list[str]:
    return sorted(name for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_")


NODE_VERIFIERS = Registry("identity_server.node_verifiers", NodeVerifier)
NODE_PROVERS = Registry("node_agent.node_provers", NodeProver)
WORKLOAD_ATTESTORS = Registry("node_agent.workload_attestors", WorkloadAttestor)
