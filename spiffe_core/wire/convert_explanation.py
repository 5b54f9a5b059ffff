"""Explanations as messages."""

from __future__ import annotations

from typing import Final

from spiffe_core.explanation import Explanation, Outcome
from spiffe_core.wire._gen.muniment.agent.explain.v1 import explain_pb2 as pb

_OUTCOMES: Final = {
    Outcome.OK: pb.Step.OUTCOME_OK,
    Outcome.FAILED: pb.Step.OUTCOME_FAILED,
    Outcome.SKIPPED: pb.Step.OUTCOME_SKIPPED,
}


def explanation_to_proto(found: Explanation) -> pb.ExplainResponse:
    """The whole answer."""
    return pb.ExplainResponse(
        code=found.code.value,
        cause=found.cause,
        fix=found.fix,
        steps=[
            pb.Step(name=one.name, outcome=_OUTCOMES[one.outcome], text=one.text, details=one.details)
            for one in found.steps
        ],
    )
