"""Places where the trust bundle is put for others to read.

One module per kind, loaded only if a table `[publish.KIND.NAME]` names it. Each target implements `ports.BundleTarget`.
"""

from __future__ import annotations

from datetime import timedelta

from identity_server.domain.publication import BundleFormat
from identity_server.ports import BundleTarget, PublishOrder
from identity_server.settings_publish import PublishSection


def targets_of(section: PublishSection) -> tuple[PublishOrder, ...]:
    """Every place the settings name, in their order. Touches neither the network nor a file."""
    return (*_files(section), *_config_maps(section), *_buckets(section))


def _files(section: PublishSection) -> tuple[PublishOrder, ...]:
    if not section.file:
        return ()
    from identity_server.publish.file import FileTarget

    return tuple(
        _order("file", name, one.format, one.refresh_hint, FileTarget(one)) for name, one in section.file.items()
    )


def _config_maps(section: PublishSection) -> tuple[PublishOrder, ...]:
    if not section.k8s_configmap:
        return ()
    from identity_server.publish.config_map import ConfigMapTarget

    return tuple(
        _order("k8s_configmap", name, one.format, one.refresh_hint, ConfigMapTarget(name, one))
        for name, one in section.k8s_configmap.items()
    )


def _buckets(section: PublishSection) -> tuple[PublishOrder, ...]:
    if not section.aws_s3:
        return ()
    from identity_server.publish.bucket import BucketTarget

    return tuple(
        _order("aws_s3", name, one.format, one.refresh_hint, BucketTarget(name, one))
        for name, one in section.aws_s3.items()
    )


def _order(kind: str, name: str, form: str, hint: timedelta | None, target: BundleTarget) -> PublishOrder:
    seconds = None if hint is None else int(hint.total_seconds())
    return PublishOrder(f"{kind}.{name}", BundleFormat(form), seconds, target)
