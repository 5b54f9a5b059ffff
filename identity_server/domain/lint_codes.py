"""What `entry lint` finds, as codes that do not change their meaning; docs/explain.md has their table."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


class LintCode(enum.Enum):
    """The value is the code."""

    UNKNOWN_AGENT = "MUN-L101"
    UNKNOWN_PARENT = "MUN-L102"
    PARENT_NOT_REACHED = "MUN-L103"
    NODES_MATCH_NONE = "MUN-L104"
    PARENT_BANNED = "MUN-L105"
    PARENT_LOOP = "MUN-L106"
    DUPLICATE = "MUN-L201"
    SHADOWED = "MUN-L202"
    OVERLAP = "MUN-L203"
    OVER_BROAD = "MUN-L301"
    UNKNOWN_TYPE = "MUN-L302"
    UNKNOWN_KIND = "MUN-L303"
    ID_TOO_LONG = "MUN-L401"
    EXPIRED = "MUN-L501"
    NO_BUNDLE = "MUN-L502"


MEANINGS: Final[Mapping[LintCode, str]] = MappingProxyType(
    {
        LintCode.UNKNOWN_AGENT: "the parent is an agent that has not attested",
        LintCode.UNKNOWN_PARENT: "the parent is neither an agent, nor a group of nodes, nor an entry's SPIFFE ID",
        LintCode.PARENT_NOT_REACHED: "the parent is an entry's SPIFFE ID, and no agent may act for that entry",
        LintCode.NODES_MATCH_NONE: "a node entry whose selectors no attested agent has",
        LintCode.PARENT_BANNED: "the parent is an agent that is banned",
        LintCode.PARENT_LOOP: "the parents lead in a circle, and to no agent",
        LintCode.DUPLICATE: "another entry with the same parent and selectors gives another SPIFFE ID",
        LintCode.SHADOWED: "another entry with the same parent gives the same SPIFFE ID to more workloads",
        LintCode.OVERLAP: "its workloads also match another entry of the same parent, with another SPIFFE ID",
        LintCode.OVER_BROAD: "its selectors tell hardly one workload from another",
        LintCode.UNKNOWN_TYPE: "a selector's type is one that no known attestor makes",
        LintCode.UNKNOWN_KIND: "a selector is of a kind that its attestor does not make",
        LintCode.ID_TOO_LONG: "the SPIFFE ID is longer than the subject that a cloud takes",
        LintCode.EXPIRED: "the entry has expired",
        LintCode.NO_BUNDLE: "it federates with a trust domain whose bundle is not here",
    }
)
"""One line for each code, for the table in the docs."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one entry. `fix` is a command where one mends it."""

    code: LintCode
    entry_id: str
    spiffe_id: str
    text: str
    fix: str
