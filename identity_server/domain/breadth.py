"""Which sets of selectors tell hardly one workload from another: the rule that `entry lint` judges by.

An entry is over-broad if *each* of its selectors says only one of these:

- that the process is root's: `unix` uid 0, user root, gid 0, group root, and both supplementary groups;
- on which node, in which namespace, or among how many containers it is: `k8s` ns, ns-label, node-name, pod-image-count,
  pod-init-image-count; every pod there would match, those that arrive tomorrow as well;
- in which namespace, and that its service account is the one that pods have which choose none: `k8s:sa:default`;
- what whoever may make a pod in any namespace chooses: `k8s` sa, pod-name, pod-label, container-name;
- what whoever starts a container of the engine chooses: `docker` label, env.

Kinds of types that are not listed here are taken for narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from spiffe_core.selector_kinds import kind_of
from spiffe_core.selectors import Selector

_ROOT: Final = frozenset(
    f"{kind}:{value}"
    for kind, value in (
        ("uid", "0"),
        ("user", "root"),
        ("gid", "0"),
        ("group", "root"),
        ("supplementary_gid", "0"),
        ("supplementary_group", "root"),
    )
)
_PLACES: Final = frozenset({"ns", "ns-label", "node-name", "pod-image-count", "pod-init-image-count"})
_CHOSEN_IN_A_NAMESPACE: Final = frozenset({"sa", "pod-name", "pod-label", "container-name"})
_ANYWHERE: Final = _CHOSEN_IN_A_NAMESPACE | _PLACES - {"ns", "ns-label"}
_CHOSEN_AT_THE_ENGINE: Final = frozenset({"label", "env"})


def why_broad(selectors: Iterable[Selector]) -> str:
    """Why these tell hardly one workload from another; "" if they do."""
    given = tuple(selectors)
    for reason, fits in _REASONS:
        if all(fits(one) for one in given):
            return reason
    return ""


def _root(one: Selector) -> bool:
    return one.type == "unix" and one.value in _ROOT


def _place(one: Selector) -> bool:
    return one.type == "k8s" and (kind_of(one) in _PLACES or one.value == "sa:default")


def _anywhere(one: Selector) -> bool:
    return one.type == "k8s" and kind_of(one) in _ANYWHERE


def _engine(one: Selector) -> bool:
    return one.type == "docker" and kind_of(one) in _CHOSEN_AT_THE_ENGINE


_REASONS: Final[tuple[tuple[str, Callable[[Selector], bool]], ...]] = (
    ("they match every process of root", _root),
    ("they match every pod of that place", _place),
    ("they match in every namespace: whoever may make a pod in any of them chooses them", _anywhere),
    (
        "they match whatever its starter says it is: labels and variables are chosen by whoever starts a container",
        _engine,
    ),
)
