"""HTTPS for strangers: documents that anybody may read, and nothing else.

    documents.py   a finished document, and the ASGI application that answers with one
    listener.py    one address: sockets, TLS, bounds, and uvicorn's HTTP/1.1 for each connection
    tls.py         TLS as Mozilla's intermediate profile has it, without client certificates
    app.py         the FastAPI application for what has parameters; its errors in short JSON
    bundle_endpoint.py     our trust bundle for other trust domains (SPIFFE Federation)
    certificate_files.py   a web certificate in files
    acme.py                a web certificate from an ACME authority; acme_*.py and client_hello.py are its parts
    endpoints.py   the listeners of one daemon: opened, kept and closed together

A listener takes any ASGI application. What is asked often is answered by `Site` from bytes that are ready; only the
rest reaches FastAPI. uvicorn's server is not used: it owns signals and one TLS context for good, and sets no bound to
how long a request may take to arrive. Its protocol, one object for each connection, is.
"""
