"""Which selectors there are: what attestors make, SPIRE's among them (spire_features section 18), and what is misspelt.

An agent may have attestors that are not in these tables. So a selector that is not in them is not wrong for sure; it is
if one of a similar name is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from spiffe_core.edit_distance import closest
from spiffe_core.selectors import Selector

_SIGNED: Final = (
    "image-signature",
    "image-attestations",
    "image-signature-value",
    "image-signature-subject",
    "image-signature-issuer",
    "image-signature-log-id",
    "image-signature-log-index",
    "image-signature-integrated-time",
    "image-signature-signed-entry-timestamp",
)
WORKLOAD_KINDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "unix": (
            "uid",
            "user",
            "gid",
            "group",
            "supplementary_gid",
            "supplementary_group",
            "path",
            "sha256",
        ),
        "k8s": (
            "ns",
            "ns-label",
            "sa",
            "node-name",
            "pod-uid",
            "pod-name",
            "pod-label",
            "pod-owner",
            "pod-owner-uid",
            "pod-image",
            "pod-image-count",
            "pod-init-image",
            "pod-init-image-count",
            "container-name",
            "container-image",
            *_SIGNED,
        ),
        "docker": ("label", "env", "image_id", "image_config_digest", *_SIGNED),
        "systemd": ("id", "fragment_path"),
        "windows": ("user_sid", "user_name", "group_sid", "group_name", "path", "sha256"),
        "slurm": ("job_id", "sluid", "step"),
    }
)
"""Type -> the first part of the values that the attestor of this type makes."""
NODE_TYPES: Final = frozenset(
    {
        "aws_iid",
        "azure_imds",
        "azure_msi",
        "gcp_iit",
        "http_challenge",
        "k8s_psat",
        "k8s_sat",
        "spiffe_id",
        "sshpop",
        "tpm_devid",
        "x509pop",
    }
)
STORE_TYPES: Final = frozenset({"aws_secretsmanager", "gcp_secretmanager"})
NAMED: Final = frozenset(
    {("k8s", "ns-label"), ("k8s", "pod-label"), ("k8s", "pod-owner"), ("k8s", "pod-owner-uid"), ("docker", "label")}
)
"""Kinds of many at once, which a second part tells apart: `pod-label:app:web`."""
SETS: Final = frozenset({("unix", "supplementary_gid"), ("unix", "supplementary_group")})
"""Kinds of which a process has many, none in the place of another."""


@dataclass(frozen=True, slots=True)
class Misspelt:
    """A selector that no known attestor makes: `part` is "type" or "kind", `right` the closest that is known, or ""."""

    part: str
    given: str
    right: str


def kind_of(selector: Selector) -> str:
    """The first part of its value."""
    return selector.value.partition(":")[0]


def slot_of(selector: Selector) -> tuple[str, ...]:
    """What it says something about: of two selectors with one slot each has the other's place."""
    kind, _, rest = selector.value.partition(":")
    if (selector.type, kind) in NAMED:
        return selector.type, kind, rest.partition(":")[0]
    if (selector.type, kind) == ("docker", "env"):
        return selector.type, kind, rest.partition("=")[0]
    if (selector.type, kind) in SETS:
        return selector.type, kind, rest
    return selector.type, kind


def misspelt(selector: Selector, types: Collection[str] = ()) -> Misspelt | None:
    """What is wrong with a workload's selector; None if an attestor that is known makes such. `types` are known too."""
    known = (*WORKLOAD_KINDS, *types)
    if selector.type not in known:
        return Misspelt("type", selector.type, closest(selector.type, known) or "")
    kinds = WORKLOAD_KINDS.get(selector.type)
    if kinds is None or kind_of(selector) in kinds:
        return None
    return Misspelt("kind", kind_of(selector), closest(kind_of(selector), kinds) or "")


def misspelt_node_type(selector: Selector, types: Collection[str] = ()) -> Misspelt | None:
    """The same for a selector of nodes, of which only the type is looked at."""
    known = (*sorted(NODE_TYPES), *types)
    if selector.type in known:
        return None
    return Misspelt("type", selector.type, closest(selector.type, known) or "")


def corrected(selector: Selector, wrong: Misspelt) -> Selector | None:
    """The selector spelt right, if it is known how."""
    if not wrong.right:
        return None
    if wrong.part == "type":
        return Selector(wrong.right, selector.value)
    return Selector(selector.type, wrong.right + selector.value[len(wrong.given) :])
