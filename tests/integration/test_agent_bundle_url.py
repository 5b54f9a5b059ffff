"""The bundle an agent begins with, fetched from a URL: https or a Unix socket, bounded, and from nowhere else (S60)."""

import contextlib
import http.server
import socketserver
import ssl
import threading
from datetime import timedelta

import pytest

from deploy.demo.stack import LocalStack
from node_agent import files
from node_agent.files import BundleUrl
from spiffe_core.bundle_document import dump_bundle, dump_bundle_pem
from spiffe_core.errors import ConfigError, Reason, Unavailable, Unbelieved
from tests.authority import SpiffeTestCA
from tests.doubles.https_double import HttpsDouble
from tests.doubles.kube_api import KubePki

CA = SpiffeTestCA()
PEM = dump_bundle_pem(CA.bundle())


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return KubePki(tmp_path_factory.mktemp("web"))


@contextlib.contextmanager
def answering(pki, status, body):
    """A web server, and the URL of the one thing it has."""
    certificate, key = pki.pair("web")
    with HttpsDouble(certificate, key, lambda *_: (status, body)) as double:
        yield double, f"https://127.0.0.1:{double.port}/bundle?form=x"


def source(pki, url, form="pem", **options):
    tls = ssl.create_default_context(cafile=str(pki.ca))
    return BundleUrl(url, form, CA.trust_domain, **{"tls": tls, **options})


@pytest.mark.parametrize(("form", "body"), [("pem", PEM), ("spiffe", dump_bundle(CA.bundle()))])
async def test_a_bundle_is_fetched_each_time_it_is_needed(pki, form, body):
    with answering(pki, 200, body) as (double, url):
        wanted = source(pki, url, form)
        assert wanted.read() is None
        assert double.requests == []
        for count in (1, 2):
            assert (await wanted.bundle()).x509_roots == (CA.der,)
            assert double.requests == [("GET", "/bundle?form=x")] * count


REFUSED = {
    "not found": (404, b"", Unavailable, "HTTP status 404"),
    "elsewhere": (302, b"", Unavailable, "HTTP status 302"),
    "nothing": (200, b"", ConfigError, "is not a trust bundle"),
    "a page": (200, b"<html>", ConfigError, "is not a trust bundle"),
    "no certificate authority": (
        200,
        ssl.DER_cert_to_PEM_cert(CA.issue().chain[0]).encode(),
        ConfigError,
        "trust_bundle_url",
    ),
    "too much": (200, b"x" * 2000, Unavailable, "more than 1000 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_no_bundle_is_refused_and_never_quoted(pki, case, monkeypatch):
    monkeypatch.setattr(files, "MAX_BUNDLE_BYTES", 1000)
    status, body, kind, words = REFUSED[case]
    with answering(pki, status, body) as (_, url):
        with pytest.raises(kind, match=words) as refusal:
            await source(pki, url).bundle()
        assert "trust_bundle_url" in refusal.value.public
        assert "html" not in refusal.value.public


async def test_a_server_that_drips_has_no_more_time_than_another(pki, monkeypatch):
    monkeypatch.setattr(files, "FETCH_SECONDS", 0.3)
    with answering(pki, 200, PEM) as (double, url):
        double.drip = True
        with pytest.raises(Unavailable, match="did not answer in time"):
            await source(pki, url).bundle()


async def test_only_an_authority_of_the_system_proves_the_web_server(pki):
    with answering(pki, 200, PEM) as (_, url):
        with pytest.raises(Unavailable, match="certificate is not believed"):
            await source(pki, url, tls=None).bundle()


@pytest.mark.parametrize(("days", "reason"), [(-400, Reason.EXPIRED), (40, Reason.NOT_YET_VALID)])
async def test_a_web_server_out_of_its_time_is_told_apart(pki, days, reason):
    """R19: it may be this machine's clock."""
    certificate, key = pki.pair("late", begins=pki.pki.now + timedelta(days=days))
    with HttpsDouble(certificate, key, lambda *_: (200, PEM)) as double:
        with pytest.raises(Unbelieved, match="certificate is not believed") as refusal:
            await source(pki, f"https://127.0.0.1:{double.port}/bundle").bundle()
        assert refusal.value.reason is reason


@contextlib.contextmanager
def on_unix_socket(path, body):
    """A web server on a Unix socket."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            good = self.path == "/bundle" and self.headers["Host"] == "spire.test"
            self.send_response(200 if good else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

        def address_string(self):
            return ""

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_an_agent_waits_for_its_bundle_and_joins_by_it():
    """R23: it stays up and says what is missing, and goes on by itself when it is there."""
    with LocalStack("url.test") as stack:
        stack.start_server()
        stack.prepare_join()
        body = (stack.folder / "bundle.pem").read_bytes()
        path = stack.folder / "web.sock"
        text = stack.agent_config.read_text().replace(
            f'trust_bundle_path = "{stack.folder}/bundle.pem"\n',
            f'trust_bundle_url = "http://spire.test/bundle"\ntrust_bundle_unix_socket = "{path}"\n',
        )
        stack.agent_config.write_text(text)
        agent = stack.spawn_agent()
        agent.wait_saying("trust_bundle_url: spire.test")
        with on_unix_socket(path, body):
            agent.wait_saying("joined the trust domain")
            agent.wait_serving(stack.api_socket)
