from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_X509: _ClassVar[Kind]
    KIND_JWT: _ClassVar[Kind]
    KIND_WIT: _ClassVar[Kind]

class Verb(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERB_UNSPECIFIED: _ClassVar[Verb]
    VERB_PREPARE: _ClassVar[Verb]
    VERB_ACTIVATE: _ClassVar[Verb]
    VERB_TAINT: _ClassVar[Verb]
    VERB_REVOKE: _ClassVar[Verb]
    VERB_DESTROY: _ClassVar[Verb]
KIND_UNSPECIFIED: Kind
KIND_X509: Kind
KIND_JWT: Kind
KIND_WIT: Kind
VERB_UNSPECIFIED: Verb
VERB_PREPARE: Verb
VERB_ACTIVATE: Verb
VERB_TAINT: Verb
VERB_REVOKE: Verb
VERB_DESTROY: Verb

class Order(_message.Message):
    __slots__ = ("order_id", "kind", "verb", "authority_id", "actor", "created_at", "reports")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_ID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    kind: Kind
    verb: Verb
    authority_id: str
    actor: str
    created_at: int
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, order_id: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., verb: _Optional[_Union[Verb, str]] = ..., authority_id: _Optional[str] = ..., actor: _Optional[str] = ..., created_at: _Optional[int] = ..., reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("server_id", "status", "detail", "finished_at", "this_server")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[Report.Status]
        STATUS_WAITING: _ClassVar[Report.Status]
        STATUS_DONE: _ClassVar[Report.Status]
        STATUS_FAILED: _ClassVar[Report.Status]
        STATUS_GIVEN_UP: _ClassVar[Report.Status]
    STATUS_UNSPECIFIED: Report.Status
    STATUS_WAITING: Report.Status
    STATUS_DONE: Report.Status
    STATUS_FAILED: Report.Status
    STATUS_GIVEN_UP: Report.Status
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    THIS_SERVER_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    status: Report.Status
    detail: str
    finished_at: int
    this_server: bool
    def __init__(self, server_id: _Optional[str] = ..., status: _Optional[_Union[Report.Status, str]] = ..., detail: _Optional[str] = ..., finished_at: _Optional[int] = ..., this_server: _Optional[bool] = ...) -> None: ...

class PlaceOrderRequest(_message.Message):
    __slots__ = ("kind", "verb")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    verb: Verb
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., verb: _Optional[_Union[Verb, str]] = ...) -> None: ...

class PlaceOrderResponse(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: Order
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ...) -> None: ...

class GetOrderRequest(_message.Message):
    __slots__ = ("order_id",)
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    def __init__(self, order_id: _Optional[str] = ...) -> None: ...

class GetOrderResponse(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: Order
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ...) -> None: ...

class ListOrdersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOrdersResponse(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[Order]
    def __init__(self, orders: _Optional[_Iterable[_Union[Order, _Mapping]]] = ...) -> None: ...

class GiveUpServerRequest(_message.Message):
    __slots__ = ("server_id",)
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    def __init__(self, server_id: _Optional[str] = ...) -> None: ...

class GiveUpServerResponse(_message.Message):
    __slots__ = ("retired",)
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    retired: _containers.RepeatedCompositeFieldContainer[Authority]
    def __init__(self, retired: _Optional[_Iterable[_Union[Authority, _Mapping]]] = ...) -> None: ...

class ListAuthoritiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAuthoritiesResponse(_message.Message):
    __slots__ = ("authorities",)
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    authorities: _containers.RepeatedCompositeFieldContainer[Authority]
    def __init__(self, authorities: _Optional[_Iterable[_Union[Authority, _Mapping]]] = ...) -> None: ...

class Authority(_message.Message):
    __slots__ = ("server_id", "kind", "authority_id", "status", "tainted", "expires_at", "this_server")
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TAINTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    THIS_SERVER_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    kind: Kind
    authority_id: str
    status: str
    tainted: bool
    expires_at: int
    this_server: bool
    def __init__(self, server_id: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., authority_id: _Optional[str] = ..., status: _Optional[str] = ..., tainted: _Optional[bool] = ..., expires_at: _Optional[int] = ..., this_server: _Optional[bool] = ...) -> None: ...
