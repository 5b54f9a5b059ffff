"""The root causes that `explain` tells, by codes that do not change their meaning; docs/explain.md has their table."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Code(enum.Enum):
    """The root causes. The value is the code; the comment beside it stands in the table of the docs."""

    SERVED = "MUN-I000"
    BANNED = "MUN-E101"
    NOT_JOINED = "MUN-E102"
    NEVER_SYNCED = "MUN-E103"
    OUT_OF_TOUCH = "MUN-E104"
    NO_PROCESS = "MUN-E201"
    ATTESTATION_FAILED = "MUN-E202"
    ATTESTOR_FAILED = "MUN-E203"
    POD_UNKNOWN = "MUN-E204"
    POD_NOT_ASKED = "MUN-E205"
    POD_EMPTY = "MUN-E206"
    NO_ENTRIES = "MUN-E301"
    SELECTOR_DIFFERS = "MUN-E302"
    SELECTOR_MISSING = "MUN-E303"
    TYPE_NOT_ATTESTED = "MUN-E304"
    NOTHING_CLOSE = "MUN-E305"
    ENTRY_EXPIRED = "MUN-E306"
    WRONG_PARENT = "MUN-E307"
    UNKNOWN_AGENT = "MUN-E308"
    SELECTOR_MISSPELT = "MUN-E309"
    STORED_ONLY = "MUN-E401"
    SIGNING_REFUSED = "MUN-E402"
    SVID_ENDED = "MUN-E403"
    BEING_FETCHED = "MUN-E404"


MEANINGS: Mapping[Code, str] = {
    Code.SERVED: "the workload is served",
    Code.BANNED: "the agent is banned: it has forgotten everything and serves nobody",
    Code.NOT_JOINED: "the agent has no identity of its own, so it knows no entries",
    Code.NEVER_SYNCED: "the agent has not read its entries from the server yet",
    Code.OUT_OF_TOUCH: "the agent has not heard from its server for a while: a newer entry may exist",
    Code.NO_PROCESS: "there is no such process, or it has ended",
    Code.ATTESTATION_FAILED: "no attestor could tell anything about the process",
    Code.ATTESTOR_FAILED: "the attestor that would find what an entry asks for has failed",
    Code.POD_UNKNOWN: "the kubelet of this node lists no such pod",
    Code.POD_NOT_ASKED: "the kubelet could not tell anything about the pod",
    Code.POD_EMPTY: "the pod has no container yet",
    Code.NO_ENTRIES: "no entry names this agent, or a group it is in, as its parent",
    Code.SELECTOR_DIFFERS: "an entry asks for another value of a selector",
    Code.SELECTOR_MISSING: "an entry asks for a selector that the process does not have",
    Code.TYPE_NOT_ATTESTED: "an entry asks for a type of selector that this agent attests nobody by",
    Code.NOTHING_CLOSE: "no entry of this agent comes close",
    Code.ENTRY_EXPIRED: "the entry that matches has expired",
    Code.WRONG_PARENT: "the entry that matches is another agent's, or a group's that this node is not in",
    Code.UNKNOWN_AGENT: "the server knows no such agent",
    Code.SELECTOR_MISSPELT: "an entry asks for a selector that no attestor makes: it is misspelt",
    Code.STORED_ONLY: "the entry that matches is for a secret store (store_svid) and is not served here",
    Code.SIGNING_REFUSED: "the server did not sign for the entry that matches",
    Code.SVID_ENDED: "the SVID has ended and could not be renewed",
    Code.BEING_FETCHED: "the entry matches, and its SVID is on its way",
}
"""One line for each code, for the table in the docs."""
