"""Worker processes that sign leaves beside the server's own (`ca.signing_workers`). `pool` is the server's half.

A worker gets the authority's key over a socket pair that it inherits, never in its arguments or environment. It is
told what was authorised and does the expensive rest: it verifies the request, builds and lints the certificate, and
signs it. Whatever it cannot do, for whatever reason, the server does itself.
"""
