"""The bundle in a bucket of moto's S3, a real HTTP process (issue 6 item 6; spire_features 2.6: aws_s3)."""

from __future__ import annotations

import itertools
import json
import logging

import pytest

from identity_server.domain.publication import BundleFormat, Outcome, publication_of
from identity_server.publish.bucket import DOMAIN, SEQUENCE, BucketTarget
from identity_server.settings_publish import PublishS3Section
from spiffe_core.bundle_document import load_bundle
from spiffe_core.errors import ConfigError, PreconditionFailed, Unavailable
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.doubles.https_double import HttpsDouble
from tests.doubles.kube_api import KubePki
from tests.interop.moto import REGION, moto_server, s3

pytestmark = pytest.mark.slow

TD = TrustDomain("example.org")
CA = SpiffeTestCA("example.org")
KEY = "spiffe/bundle.json"
NUMBERS = itertools.count()
SECRET = "the-secret-that-nobody-sees"


def ours(sequence, form=BundleFormat.SPIFFE):
    return publication_of(CA.bundle(sequence=sequence), form)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def client(store):
    client = s3(store)
    yield client
    client.close()


@pytest.fixture
def bucket(client):
    name = f"bundles-{next(NUMBERS)}"
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch, tmp_path):
    """Credentials of whoever runs the tests have no place here."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def target(url, bucket, folder=None, **over):
    """With a secret in a file if there is a folder for it, else with what the environment has."""
    document = {"region": REGION, "bucket": bucket, "object_key": KEY, "format": "spiffe", "endpoint": url}
    if url.startswith("http://"):
        document["insecure_http"] = True
    if folder is not None:
        path = folder / "secret"
        path.write_text(SECRET + "\n")
        path.chmod(0o600)
        document |= {"access_key_id": "AKIAEXAMPLE", "secret_access_key_file": str(path)}
    return BucketTarget("here", PublishS3Section.model_validate({**document, **over}))


def held(client, bucket):
    found = client.get_object(Bucket=bucket, Key=KEY)
    with found["Body"] as body:
        return body.read(), found


def test_an_object_is_made_then_replaced_and_left_when_it_is_the_same(store, client, bucket, tmp_path):
    """Content, type and metadata."""
    publisher = target(store, bucket, tmp_path)
    assert publisher.put(ours(1)) is Outcome.WRITTEN
    assert publisher.put(ours(1)) is Outcome.UNCHANGED
    assert publisher.put(ours(2)) is Outcome.WRITTEN
    content, found = held(client, bucket)
    assert load_bundle(content, TD).bundle.sequence == 2
    assert found["ContentType"] == "application/json"
    assert (found["Metadata"][DOMAIN], found["Metadata"][SEQUENCE]) == ("example.org", "2")


def test_a_newer_object_and_another_trust_domains_stay(store, client, bucket, tmp_path):
    """TDB-06, in every format, because the metadata tells."""
    publisher = target(store, bucket, tmp_path)
    publisher.put(ours(5, BundleFormat.PEM))
    for older in (
        ours(4, BundleFormat.PEM),
        publication_of(SpiffeTestCA("other.org").bundle(sequence=9), BundleFormat.PEM),
    ):
        with pytest.raises(PreconditionFailed, match="left as it is"):
            publisher.put(older)
    assert held(client, bucket)[0] == ours(5, BundleFormat.PEM).content


@pytest.mark.parametrize("first", [True, False], ids=["there is none", "there is one"])
def test_whoever_writes_between_our_look_and_our_write_wins_if_newer(store, client, bucket, tmp_path, first):
    """If-None-Match and If-Match: the older of two servers never overwrites the newer."""
    other, publisher = target(store, bucket, tmp_path), target(store, bucket, tmp_path)
    if not first:
        other.put(ours(1))
    looked = publisher._present

    def look(client):
        found = looked(client)
        publisher._present = looked
        other.put(ours(9))
        return found

    publisher._present = look
    with pytest.raises(PreconditionFailed, match="sequence 9"):
        publisher.put(ours(2))
    assert load_bundle(held(client, bucket)[0], TD).bundle.sequence == 9


def test_credentials_come_from_the_environment_where_none_are_set(store, client, bucket, monkeypatch):
    """Read anew for each try."""
    publisher = target(store, bucket)
    with pytest.raises(Unavailable, match="credentials"):
        publisher.put(ours(1))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert publisher.put(ours(1)) is Outcome.WRITTEN


def test_troubles_are_told_without_secrets(store, bucket, tmp_path, caplog):
    """No bucket, nobody there, a secret open to everybody; not a word of the credentials in message or log."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Unavailable, match="no such bucket") as missing:
        target(store, "nowhere-to-be-found", tmp_path).put(ours(1))
    publisher = target("http://127.0.0.1:1", bucket, tmp_path)
    with pytest.raises(Unavailable, match="connect") as away:
        publisher.put(ours(1))
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(ConfigError, match=r"publish\.aws_s3\.here\.secret_access_key_file"):
        publisher.put(ours(1))
    told = caplog.text + str(missing.value) + str(away.value)
    assert SECRET not in told
    assert "AKIAEXAMPLE" not in told


def test_a_store_that_forbids_looking_and_knows_no_conditions_is_written_nevertheless(tmp_path, bucket):
    """SPIRE asks for s3:PutObject only; some stores answer 501 to If-Match. Over TLS, by a CA of our own, in path style."""
    pki = KubePki(tmp_path)
    certificate, key = pki.pair("store")
    looks, kept = [403], []

    def answer(method, path, headers, body, _certified):
        assert path.startswith(f"/{bucket}/{KEY}")
        if method == "HEAD":
            return looks[0], b""
        if headers["If-Match"] or headers["If-None-Match"]:
            return 501, b"<Error><Code>NotImplemented</Code></Error>"
        kept.append(body)
        return 200, b""

    with HttpsDouble(certificate, key, answer) as double:
        publisher = target(f"https://127.0.0.1:{double.port}", bucket, tmp_path, ca_file=str(pki.ca))
        assert publisher.put(ours(1)) is Outcome.WRITTEN
        looks[0] = 404
        assert publisher.put(ours(2)) is Outcome.WRITTEN
        assert [method for method, _ in double.requests] == ["HEAD", "PUT", "HEAD", "PUT", "HEAD", "PUT"]
    assert [json.loads(one)["spiffe_sequence"] for one in kept] == [1, 2]


@pytest.mark.parametrize(
    ("status", "words"), [(403, "may not do s3:PutObject"), (500, "status 500"), (503, "status 503")]
)
def test_refusals_say_what_to_do(tmp_path, bucket, status, words):
    """And nothing is tried twice by the library: our own back-off rules."""
    pki = KubePki(tmp_path)
    with HttpsDouble(*pki.pair("store"), lambda *_: (status, b"<Error><Code>Sorry</Code></Error>")) as double:
        publisher = target(f"https://127.0.0.1:{double.port}", bucket, tmp_path, ca_file=str(pki.ca))
        with pytest.raises(Unavailable, match=words):
            publisher.put(ours(1))
        assert len(double.requests) <= 2
