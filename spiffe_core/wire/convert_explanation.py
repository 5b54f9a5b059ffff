"""Explanations as messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spiffe_core.explanation_facts import ContainerExplanation, Explanation, Outcome
from spiffe_core.wire._gen.muniment.agent.explain.v1 import explain_pb2 as pb

_OUTCOMES: Final = {
    Outcome.OK: pb.Step.OUTCOME_OK,
    Outcome.FAILED: pb.Step.OUTCOME_FAILED,
    Outcome.SKIPPED: pb.Step.OUTCOME_SKIPPED,
}


def explanation_to_proto(found: Explanation, containers: Sequence[ContainerExplanation] = ()) -> pb.ExplainResponse:
    """The whole answer; of a pod, with those about its containers."""
    return pb.ExplainResponse(
        code=found.code.value,
        cause=found.cause,
        fix=found.fix,
        steps=[
            pb.Step(name=one.name, outcome=_OUTCOMES[one.outcome], text=one.text, details=one.details)
            for one in found.steps
        ],
        containers=[
            pb.Container(
                name=one.name, init=one.init, process=one.process, explanation=explanation_to_proto(one.explanation)
            )
            for one in containers
        ],
    )
