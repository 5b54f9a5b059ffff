"""muniment.server.authorityorders.v1.AuthorityOrders: forced rotation for all servers (architecture A15)."""

from __future__ import annotations

from typing import Final, cast

from identity_server.domain.authority import Authority, AuthorityKind
from identity_server.domain.orders import ErrandStatus, OrderVerb, Progress
from identity_server.rpc.caller import Context, current_caller
from identity_server.services.authority_orders import AuthorityOrders
from spiffe_core.errors import InvalidRequest
from spiffe_core.wire._gen.muniment.server.authorityorders.v1 import authorityorders_pb2 as pb

MAX_ID_BYTES: Final = 255
_KINDS: Final[dict[int, AuthorityKind]] = {pb.KIND_X509: "x509", pb.KIND_JWT: "jwt", pb.KIND_WIT: "wit"}
_VERBS: Final[dict[int, OrderVerb]] = {
    pb.VERB_PREPARE: "prepare",
    pb.VERB_ACTIVATE: "activate",
    pb.VERB_TAINT: "taint",
    pb.VERB_REVOKE: "revoke",
    pb.VERB_DESTROY: "destroy",
}
_STATUSES: Final = {
    ErrandStatus.WAITING: pb.Report.STATUS_WAITING,
    ErrandStatus.DONE: pb.Report.STATUS_DONE,
    ErrandStatus.FAILED: pb.Report.STATUS_FAILED,
    ErrandStatus.GIVEN_UP: pb.Report.STATUS_GIVEN_UP,
}
_KIND_NUMBERS: Final = {kind: cast("pb.Kind", number) for number, kind in _KINDS.items()}
_VERB_NUMBERS: Final = {verb: cast("pb.Verb", number) for number, verb in _VERBS.items()}


class AuthorityOrdersApi:
    """Orders to every server that shares the database."""

    def __init__(self, orders: AuthorityOrders) -> None:
        self._orders = orders

    async def PlaceOrder(self, request: pb.PlaceOrderRequest, _context: Context) -> pb.PlaceOrderResponse:
        """Store an order; each server carries it out by itself."""
        kind, verb = _KINDS.get(request.kind), _VERBS.get(request.verb)
        if kind is None:
            raise InvalidRequest("kind: must be X509, JWT or WIT", field="kind")
        if verb is None:
            raise InvalidRequest("verb: must be PREPARE, ACTIVATE, TAINT or REVOKE", field="verb")
        return pb.PlaceOrderResponse(order=self._to_proto(await self._orders.place(current_caller(), kind, verb)))

    async def GetOrder(self, request: pb.GetOrderRequest, _context: Context) -> pb.GetOrderResponse:
        """How far an order has come."""
        order_id = _required(request.order_id, "order_id")
        return pb.GetOrderResponse(order=self._to_proto(await self._orders.progress(order_id)))

    async def ListOrders(self, _request: pb.ListOrdersRequest, _context: Context) -> pb.ListOrdersResponse:
        """The newest orders."""
        return pb.ListOrdersResponse(orders=[self._to_proto(one) for one in await self._orders.recent()])

    async def GiveUpServer(self, request: pb.GiveUpServerRequest, _context: Context) -> pb.GiveUpServerResponse:
        """Retire what a server that will not come back has signed with."""
        retired = await self._orders.give_up(current_caller(), _required(request.server_id, "server_id"))
        return pb.GiveUpServerResponse(retired=map(self._authority, retired))

    async def ListAuthorities(
        self, _request: pb.ListAuthoritiesRequest, _context: Context
    ) -> pb.ListAuthoritiesResponse:
        """Which server has which authorities."""
        return pb.ListAuthoritiesResponse(authorities=map(self._authority, await self._orders.everywhere()))

    def _authority(self, one: Authority) -> pb.Authority:
        return pb.Authority(
            server_id=one.server_id,
            kind=_KIND_NUMBERS[one.kind],
            authority_id=one.authority_id,
            status=one.status.value,
            tainted=one.tainted,
            expires_at=one.not_after,
            this_server=one.server_id == self._orders.server_id,
        )

    def _to_proto(self, progress: Progress) -> pb.Order:
        order = progress.order
        return pb.Order(
            order_id=order.order_id,
            kind=_KIND_NUMBERS[order.kind],
            verb=_VERB_NUMBERS[order.verb],
            authority_id=order.authority_id,
            actor=order.actor,
            created_at=order.created_at,
            reports=[
                pb.Report(
                    server_id=one.server_id,
                    status=_STATUSES[one.status],
                    detail=one.detail,
                    finished_at=one.finished_at,
                    this_server=one.server_id == self._orders.server_id,
                )
                for one in progress.errands
            ],
        )


def _required(text: str, field: str) -> str:
    if not text or len(text.encode(errors="replace")) > MAX_ID_BYTES:
        raise InvalidRequest(f"{field}: must have 1 to {MAX_ID_BYTES} bytes", field=field)
    return text
