"""`identity-server run`: the process around a server — signals, loops, limits, and an ordered end (architecture A7)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import NoReturn

from identity_server.bootstrap import assemble
from identity_server.domain.history import HistoryChange
from identity_server.server import Server
from identity_server.settings import ServerSettings
from spiffe_core import daemon
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.runtime.logs import LogOutput
from spiffe_core.runtime.process import connections_that_fit
from spiffe_core.runtime.supervise import Supervisor

log = logging.getLogger(__name__)

ROTATION_SECONDS = 10.0
OWN_IDENTITY_SECONDS = 5.0
PRUNE_SECONDS = 300.0
RETRY_SECONDS = 5.0
AGREEMENT_SECONDS = 30.0
START_AGAIN_SECONDS = 5
"""A start that the database's absence ends is repeated after so long (R25)."""
REPUBLISH_SECONDS = 1.0
GUARD_SECONDS = 1.0
_SHORTEST_PAUSE = 0.05


def run(settings: ServerSettings, *, reset_keys: bool = False) -> int:
    """Serve until SIGTERM or SIGINT.

    Gives the process's exit code: 0 after an orderly end, 1 if it could not start or run.
    """
    return daemon.run(
        settings,
        lambda output: _serve(_with_room(settings), output, reset_keys=reset_keys),
        program="identity-server",
        what="server",
    )


def run_and_exit(settings: ServerSettings, *, reset_keys: bool = False) -> NoReturn:
    """`run`, then leave without waiting for threads that hang in the kernel."""
    daemon.leave(run(settings, reset_keys=reset_keys))


def _with_room(settings: ServerSettings) -> ServerSettings:
    """The settings with as many connections as there is room for, if nobody chose their number."""
    limits = settings.limits
    room = connections_that_fit(limits.connections, chosen="connections" in limits.model_fields_set)
    return settings.model_copy(update={"limits": limits.model_copy(update={"connections": room})})


async def _serve(settings: ServerSettings, output: LogOutput, *, reset_keys: bool) -> int:
    stop, loop = daemon.told_to_stop(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, output.reopen)  # also while it waits for its database: unhandled, it kills
    server = await _assembled(settings, stop, reset_keys=reset_keys)
    if server is None:
        return 0
    try:
        loop.add_signal_handler(signal.SIGUSR2, _reopen, server, output)
        await server.open_doors()
        _announce(server)
        server.monitor.systemd.ready(f"serving trust domain {settings.trust_domain}")
        await _until_stopped(server, stop)
        log.info("stopping")
        server.monitor.systemd.stopping()
    finally:
        await server.close()
    log.info("stopped")
    return 0


async def _assembled(settings: ServerSettings, stop: asyncio.Event, *, reset_keys: bool) -> Server | None:
    """The server; a database server or an upstream that is away is waited for (R25).

    None if we are told to stop meanwhile.
    """
    while True:
        try:
            return await assemble(settings, reset_keys=reset_keys)
        except Unavailable as error:
            if not settings.database.shared and settings.upstream is None:
                raise _with_its_cause(error) from error
            log.error(  # noqa: TRY400  # the message says it all
                "cannot start yet, trying again in %d s: %s",
                START_AGAIN_SECONDS,
                error.public,
                extra={"facts": error.facts},
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_AGAIN_SECONDS):
                await stop.wait()
                return None


def _with_its_cause(error: Unavailable) -> Unavailable:
    """For whoever starts the daemon: he may know which file it is and what is the matter with it; callers may not."""
    place, cause = error.facts.get("place"), error.facts.get("cause")
    if not place or not cause:
        return error
    return Unavailable(f"{place} cannot be used: {cause}; make room or mend what is wrong with it, and start again")


def _announce(server: Server) -> None:
    settings, active = server.settings, server.authorities.active
    host, port = server.address
    log.info(
        "serving trust domain %s: agents on %s:%d, administrators on %s, authority %s",
        settings.trust_domain,
        host,
        port,
        settings.socket_path,
        active.authority_id if active is not None else "none",
    )
    for warning in settings.warnings():
        log.warning("%s", warning)


def _reopen(server: Server, output: LogOutput) -> None:
    """SIGUSR2: a log rotator moved the files away."""
    output.reopen()
    try:
        server.audit.reopen()
    except IdentityError as error:
        log.error("%s", error.public)  # noqa: TRY400  # the message says it all


async def _until_stopped(server: Server, stop: asyncio.Event) -> None:
    async with Supervisor() as tasks:
        tasks.start(keep_authorities(server), "rotation")
        tasks.start(follow_journal(server), "journal")
        tasks.start(keep_own_identity(server), "own identity")
        tasks.start(keep_errands(server), "orders")
        tasks.start(keep_agreement(server), "settings")
        if server.shared is not None:
            tasks.start(server.shared.run(), "progress")
        tasks.start(server.above.keep_up(), "upstream")
        tasks.start(server.publishing.keep_up(), "publishing")
        tasks.start(server.refresh.run(), "federated bundles")
        tasks.start(_every(PRUNE_SECONDS, lambda: prune(server), "pruning"), "pruning")
        tasks.start(guard_connections(server), "connections")
        tasks.start(server.published.keep(), "endpoints")
        tasks.start(server.monitor.watch(), "health")
        await stop.wait()
        tasks.stop()


async def keep_authorities(server: Server) -> None:
    """Look after the authorities every 10 s (oftener if they live very shortly), and at once when history changed.

    After a change of history they are first published again, and nothing else happens to them until that is stored.
    """
    pause = min(ROTATION_SECONDS, server.settings.ca.ttl.total_seconds() / 24)
    changed = asyncio.Event()
    lost: list[HistoryChange] = []

    def alarm(change: HistoryChange) -> None:
        log.critical(
            "the database's history changed: %s. Writes acknowledged since may be gone; check entries and agents",
            change.reason,
            extra={"facts": {"before": str(change.before), "after": str(change.after)}},
        )
        lost.append(change)
        server.authorities.held = True
        changed.set()

    server.store.on_history_change = alarm
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPUBLISH_SECONDS if lost else pause):
                await changed.wait()
        changed.clear()
        while lost and await _republished(server, lost[0]):
            lost[:] = lost[:1] if len(lost) > 1 else []  # lost once more meanwhile: the first change knows the most
        if lost:
            continue
        server.authorities.held = False
        await server.authorities.tick()


async def follow_journal(server: Server) -> None:
    """Look after the authorities at once when the journal changed: another server may have retired one (A15)."""
    watch = server.store.state
    journal, version = watch.value.authorities, watch.version
    while True:
        version = await watch.changed(version)
        if watch.value.authorities is journal or server.authorities.held:
            continue
        journal = watch.value.authorities
        await server.authorities.tick()


async def _republished(server: Server, change: HistoryChange) -> bool:
    """Store the authorities again that a new history has lost; False if that has to be tried again."""
    try:
        missing = await server.lost_history.publish_again(change)
    except IdentityError as error:
        log.error(  # noqa: TRY400  # the message says it all
            "the signing authorities could not be published again yet; "
            "nothing is signed by one that is not in the bundle: %s",
            error.public,
            extra={"facts": error.facts},
        )
        return False
    log.warning(
        "the signing authorities stand in the journal and the bundle again", extra={"facts": {"missing": missing}}
    )
    return True


async def _every(seconds: float, act: Callable[[], Awaitable[object]], name: str) -> None:
    """Act again and again; a refusal is logged and tried again, a bug ends the server."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await act()
        except IdentityError as error:
            log.warning("%s failed and will be tried again: %s", name, error.public, extra={"facts": error.facts})


async def keep_own_identity(server: Server) -> None:
    """Renew the server's own certificate at half-life, and at once when its authority is tainted or gone."""
    watch = server.store.state
    version = watch.version
    while True:
        pause = min(OWN_IDENTITY_SECONDS, max(_SHORTEST_PAUSE, server.own.seconds_until_due()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                version = await watch.changed(version)
        try:
            if await server.own.tick():
                log.info("the server's own certificate was renewed")
        except IdentityError as error:
            log.warning("the server's own certificate could not be renewed yet: %s", error.public)
            await asyncio.sleep(RETRY_SECONDS)


async def keep_errands(server: Server) -> None:
    """Carry out what all servers were told to do with their authorities, as soon as memory knows of it."""
    watch = server.store.state
    while True:
        version = watch.version
        try:
            if not server.authorities.held:
                await server.errands.run_waiting()
        except IdentityError as error:
            log.warning("an order to all servers could not be carried out yet: %s", error.public)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await watch.changed(version)


async def keep_agreement(server: Server) -> None:
    """Compare our settings with the other servers' now and then, and at once when one of them has new ones (R39)."""
    watch = server.store.state
    while True:
        version, seen = watch.version, watch.value.servers_at
        try:
            await server.agreement.tick()
        except IdentityError as error:
            log.warning("the settings of the servers could not be compared: %s", error.public)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGREEMENT_SECONDS):
                while watch.value.servers_at == seen:
                    version = await watch.changed(version)


async def prune(server: Server) -> None:
    """Delete what has expired: entries, join tokens, old revisions of the log, what vanished servers left behind."""
    if server.authorities.believes_clock():
        with server.monitor.stopwatch("registration_entry_manager_prune"):
            while await server.registration.prune():
                log.info("expired entries were deleted")
        await server.fleet.prune_tokens()
    await server.store.prune_log()
    if not server.authorities.held:
        await server.absent.tick()


async def guard_connections(server: Server) -> None:
    """Cut connections of banned agents and revoked authorities as soon as memory knows, at most once a second."""
    watch = server.store.state
    version = watch.version
    seen = (watch.value.agents, watch.value.bundles)
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                version = await watch.changed(version)
        now = (watch.value.agents, watch.value.bundles)
        unchanged = now[0] is seen[0] and now[1] is seen[1]
        seen = now
        cut = server.dismiss_strangers()
        if cut:
            log.info("cut %d connections whose certificates are no longer accepted", cut)
        if not unchanged:
            await asyncio.sleep(GUARD_SECONDS)
