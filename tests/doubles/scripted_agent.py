"""A Workload API that answers each FetchX509SVID call as the next line of a script says."""

import asyncio

from spiffe_core.wire._gen import workload_pb2


class ScriptedAgent:
    """`script` is a list of calls; a call is a list of messages, then an error to raise or None to hold the stream open.

    Messages may be bytes. After the last line every call repeats it. `calls` holds the metadata of each call;
    `more` holds messages for the stream that is held open.
    """

    def __init__(self, *script):
        self.script = list(script)
        self.calls = []
        self.more = asyncio.Queue()

    async def FetchX509SVID(self, _request, context):
        line = self.script[min(len(self.calls), len(self.script) - 1)]
        self.calls.append(tuple(context.invocation_metadata()))
        *messages, end = line
        for message in messages:
            yield message
        if end is not None:
            raise end
        while True:
            message = await self.more.get()
            if isinstance(message, Exception):
                raise message
            yield message


def message_of(*identities, bundle, federated=None, **spoil):
    """An X509SVIDResponse as an agent would send it; `spoil` replaces fields of the first SVID."""
    response = workload_pb2.X509SVIDResponse(federated_bundles=federated or {})
    for identity in identities:
        response.svids.add(
            spiffe_id=str(identity.spiffe_id),
            x509_svid=b"".join(identity.chain),
            x509_svid_key=identity.key.reveal(),
            bundle=bundle,
            hint=identity.hint,
        )
    for field, value in spoil.items():
        setattr(response.svids[0], field, value)
    return response
