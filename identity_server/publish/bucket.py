"""The trust bundle as an object of Amazon S3, or of a store that speaks its protocol.

What an object was made of stands in its metadata, so that HEAD is enough to see whether it may be replaced; it is then
replaced only if it is still the one that was looked at (`If-Match`, `If-None-Match`). Where HEAD is forbidden, or the
store knows no such conditions, it is replaced without.

Credentials are those of `access_key_id` and the file with its secret, else what botocore finds: the variables AWS_*,
the shared credentials file, a web identity, or the machine's role. They are read anew for each attempt.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from identity_server.domain.publication import Outcome, Present, Publication, may_write
from identity_server.settings_publish import PublishS3Section
from spiffe_core.bundle import MAX_SEQUENCE
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.runtime.secret_file import read_secret

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
TRIES = 4
"""So often it is begun anew because somebody else wrote meanwhile."""
MAX_SECRET_BYTES = 1024
DOMAIN = "spiffe-trust-domain"
SEQUENCE = "spiffe-sequence"
DIGEST = "sha256"
_MAX_WORDS = 300
_MISSING, _FORBIDDEN, _CONFLICT, _PRECONDITION, _UNIMPLEMENTED = 404, 403, 409, 412, 501
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class BucketTarget:
    """One object of one bucket."""

    def __init__(self, name: str, section: PublishS3Section) -> None:
        self._section = section
        self._where = f"publish.aws_s3.{name}"
        self._unconditional = False
        self._blind = False
        self._loader: Any = None
        self.place = f"s3://{section.bucket}/{section.object_key}"
        if section.endpoint is not None:
            self.place += f" at {section.endpoint}"

    def put(self, ours: Publication) -> Outcome:
        """Write the object unless it is the same, or a newer one.

        Raises:
            Unavailable, ConfigError: the store cannot be asked, or refuses.
            PreconditionFailed: what is there must stay.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._put(ours)
        except IdentityError:
            raise
        except ClientError as error:
            raise self._refused(error) from None
        except BotoCoreError as error:
            raise Unavailable(f"{self.place}: {_words(str(error))}") from None
        except Exception as error:  # noqa: BLE001  # what lies beneath the library has errors of its own, of many kinds
            raise Unavailable(f"{self.place}: cannot be asked ({type(error).__name__})") from None

    def _put(self, ours: Publication) -> Outcome:
        client = self._client()
        try:
            for _ in range(TRIES):
                there, condition = self._present(client)
                if not may_write(ours, there, self.place):
                    return Outcome.UNCHANGED
                if self._written(client, ours, condition):
                    return Outcome.WRITTEN
        finally:
            client.close()
        raise Unavailable(f"{self.place} is written by others all the time")

    def _present(self, client: Any) -> tuple[Present | None, dict[str, str]]:
        """What is there, and the condition under which it may be replaced."""
        from botocore.exceptions import ClientError

        place = {"Bucket": self._section.bucket, "Key": self._section.object_key}
        try:
            found = client.head_object(**place)
        except ClientError as error:
            status = _status(error)
            if status == _MISSING:
                return None, {} if self._unconditional else {"IfNoneMatch": "*"}
            if status != _FORBIDDEN:
                raise
            if not self._blind:
                self._blind = True
                log.info(
                    "%s cannot be looked at (s3:GetObject, s3:ListBucket): "
                    "it is written without a look at what is there",
                    self.place,
                )
            return None, {}
        metadata = {str(name).lower(): str(value) for name, value in found.get("Metadata", {}).items()}
        sequence = metadata.get(SEQUENCE, "")
        told = sequence.isascii() and sequence.isdecimal() and len(sequence) <= len(str(MAX_SEQUENCE))
        present = Present(metadata.get(DIGEST, ""), int(sequence) if told else None, metadata.get(DOMAIN, ""))
        tag = found.get("ETag")
        return present, {"IfMatch": tag} if isinstance(tag, str) and tag and not self._unconditional else {}

    def _written(self, client: Any, ours: Publication, condition: dict[str, str]) -> bool:
        """Whether it was; False if somebody else wrote since it was looked at, or the condition is to be left out."""
        from botocore.exceptions import ClientError

        try:
            client.put_object(
                Bucket=self._section.bucket,
                Key=self._section.object_key,
                Body=ours.content,
                ContentType=ours.format.content_type,
                Metadata={DOMAIN: ours.trust_domain.name, SEQUENCE: str(ours.sequence), DIGEST: ours.digest},
                **condition,
            )
        except ClientError as error:
            status = _status(error)
            if condition and status == _UNIMPLEMENTED:
                self._unconditional = True
                return False
            if condition and status in {_CONFLICT, _PRECONDITION}:
                return False
            raise
        return True

    def _client(self) -> Any:
        """A client with the credentials as they are now.

        Raises:
            ConfigError: the file with the secret or the CA cannot be used.
        """
        import botocore.config
        import botocore.session

        for chatty in ("botocore", "urllib3"):  # at debug they tell what is signed, session tokens among it
            logging.getLogger(chatty).setLevel(logging.WARNING)
        section, given = self._section, {}
        if section.secret_access_key_file is not None:
            secret = read_secret(
                section.secret_access_key_file,
                field=f"{self._where}.secret_access_key_file",
                max_bytes=MAX_SECRET_BYTES,
            )
            given = {"aws_access_key_id": section.access_key_id, "aws_secret_access_key": secret}
        path_style = section.endpoint is not None if section.path_style is None else section.path_style
        session = botocore.session.Session()
        if self._loader is None:
            self._loader = session.get_component("data_loader")
        session.register_component("data_loader", self._loader)
        return session.create_client(
            "s3",
            region_name=section.region,
            endpoint_url=section.endpoint,
            verify=None if section.ca_file is None else str(section.ca_file),
            config=botocore.config.Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"total_max_attempts": 1},
                proxies={},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if path_style else "auto"},
            ),
            **given,
        )

    def _refused(self, error: ClientError) -> Unavailable:
        """What the store said, and what to do about it."""
        status = _status(error)
        told = error.response.get("Error", {})
        words = _words(f"{told.get('Code', '')} {told.get('Message', '')}")
        if status == _FORBIDDEN:
            return Unavailable(f"{self.place}: the credentials are refused or may not do s3:PutObject there: {words}")
        if status == _MISSING:
            return Unavailable(f"{self.place}: there is no such bucket: {words}")
        return Unavailable(f"{self.place}: the store answered with status {status}: {words}")


def _status(error: ClientError) -> int:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _words(text: str) -> str:
    """Somebody else's words: printable and short."""
    return _UNPRINTABLE.sub(" ", text).strip()[:_MAX_WORDS]
