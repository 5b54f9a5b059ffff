from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("pid", "selectors", "refusal", "caller", "pod")
    PID_FIELD_NUMBER: _ClassVar[int]
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    pid: int
    selectors: Selectors
    refusal: str
    caller: bool
    pod: Pod
    def __init__(self, pid: _Optional[int] = ..., selectors: _Optional[_Union[Selectors, _Mapping]] = ..., refusal: _Optional[str] = ..., caller: _Optional[bool] = ..., pod: _Optional[_Union[Pod, _Mapping]] = ...) -> None: ...

class Pod(_message.Message):
    __slots__ = ("namespace", "name")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Selectors(_message.Message):
    __slots__ = ("selectors",)
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    selectors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, selectors: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("code", "cause", "fix", "steps", "containers")
    CODE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    code: str
    cause: str
    fix: str
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    containers: _containers.RepeatedCompositeFieldContainer[Container]
    def __init__(self, code: _Optional[str] = ..., cause: _Optional[str] = ..., fix: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., containers: _Optional[_Iterable[_Union[Container, _Mapping]]] = ...) -> None: ...

class Container(_message.Message):
    __slots__ = ("name", "init", "process", "explanation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    init: bool
    process: int
    explanation: ExplainResponse
    def __init__(self, name: _Optional[str] = ..., init: _Optional[bool] = ..., process: _Optional[int] = ..., explanation: _Optional[_Union[ExplainResponse, _Mapping]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("name", "outcome", "text", "details")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[Step.Outcome]
        OUTCOME_OK: _ClassVar[Step.Outcome]
        OUTCOME_FAILED: _ClassVar[Step.Outcome]
        OUTCOME_SKIPPED: _ClassVar[Step.Outcome]
    OUTCOME_UNSPECIFIED: Step.Outcome
    OUTCOME_OK: Step.Outcome
    OUTCOME_FAILED: Step.Outcome
    OUTCOME_SKIPPED: Step.Outcome
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    name: str
    outcome: Step.Outcome
    text: str
    details: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., outcome: _Optional[_Union[Step.Outcome, str]] = ..., text: _Optional[str] = ..., details: _Optional[_Iterable[str]] = ...) -> None: ...
