"""The settings of bundle publishing: `[publish.KIND.NAME]`, one table for each place the trust bundle is put.

The keys are those of SPIRE's bundle publishers (spire_features section 2.6). Secrets are given as paths of files and
read anew at each use.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from spiffe_core.runtime.settings import Lifespan, Section
from spiffe_core.runtime.settings_places import AbsolutePath

MAX_TARGETS = 16
"""Of each kind."""
LONGEST_HINT = timedelta(days=30)

_MODE = re.compile(r"0?[0-7]{3}")


def _hint(value: timedelta) -> timedelta:
    if value > LONGEST_HINT:
        raise ValueError("must be at most 720h")
    return value


def _mode(text: str) -> str:
    if not _MODE.fullmatch(text) or int(text, 8) & 0o133 or not int(text, 8) & 0o400:
        raise ValueError('must be an octal mode without execution and without writing by others, for example "0644"')
    return text


def _endpoint(text: str) -> str:
    rule = 'must be "https://HOST" or "https://HOST:PORT", for example "https://minio.example.org:9000"'
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(rule) from None
    plain = not (parts.path.rstrip("/") or parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain or port == 0:
        raise ValueError(rule)
    return text


Hint = Annotated[Lifespan, AfterValidator(_hint)]
Form = Literal["spiffe", "jwks", "pem"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A namespace (RFC 1123 label)."""
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
"""The name of a ConfigMap (RFC 1123 subdomain)."""
DataKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,253}$")]


class PublishFileSection(Section):
    """[publish.file.NAME]: a file, replaced as a whole."""

    path: AbsolutePath
    format: Form
    mode: Annotated[str, AfterValidator(_mode)] = "0644"
    refresh_hint: Hint | None = None

    @property
    def bits(self) -> int:
        """The mode as a number."""
        return int(self.mode, 8)


class PublishConfigMapSection(Section):
    """[publish.k8s_configmap.NAME]: a key of a ConfigMap of one cluster, the own one without `kubeconfig_path`."""

    namespace: Label
    configmap_name: ObjectName
    configmap_key: DataKey
    format: Form
    kubeconfig_path: AbsolutePath | None = None
    refresh_hint: Hint | None = None


class PublishS3Section(Section):
    """[publish.aws_s3.NAME]: an object in a bucket of Amazon S3, or of a store at `endpoint` that speaks like it."""

    region: str = Field(pattern=r"^[a-z0-9-]{1,64}$")
    bucket: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")
    object_key: str = Field(min_length=1, max_length=1024)
    format: Form
    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    path_style: bool | None = None
    insecure_http: bool = False
    ca_file: AbsolutePath | None = None
    access_key_id: str = Field(default="", pattern=r"^[A-Za-z0-9_+/=.-]{0,256}$")
    secret_access_key_file: AbsolutePath | None = None
    refresh_hint: Hint | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.access_key_id) != (self.secret_access_key_file is not None):
            raise ValueError("access_key_id and secret_access_key_file belong together; set both or neither")
        plain = self.endpoint is not None and self.endpoint.startswith("http://")
        if plain != self.insecure_http:
            raise ValueError('insecure_http = true and an endpoint of the form "http://..." belong together')
        if self.ca_file is not None and self.endpoint is None:
            raise ValueError("ca_file is for a store named in endpoint")
        return self


class PublishSection(Section):
    """[publish]: where the trust bundle is put on every change; nowhere without tables below it."""

    file: dict[Name, PublishFileSection] = Field(default_factory=dict, max_length=MAX_TARGETS)
    k8s_configmap: dict[Name, PublishConfigMapSection] = Field(default_factory=dict, max_length=MAX_TARGETS)
    aws_s3: dict[Name, PublishS3Section] = Field(default_factory=dict, max_length=MAX_TARGETS)

    @model_validator(mode="after")
    def _no_two_in_one_place(self) -> Self:
        places = [(one.path,) for one in self.file.values()]
        if len(set(places)) != len(places):
            raise ValueError("file: two tables write the same path")
        return self

    @property
    def is_empty(self) -> bool:
        """Whether it is put nowhere."""
        return not (self.file or self.k8s_configmap or self.aws_s3)

    def warnings(self) -> tuple[str, ...]:
        """What will work and should not be left so."""
        return tuple(
            f"publish.aws_s3.{name}.insecure_http: whoever sits between this server and {one.endpoint} can answer in "
            "its place, and the bundle is then published nowhere; use https"
            for name, one in self.aws_s3.items()
            if one.insecure_http
        )
