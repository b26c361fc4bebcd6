"""A gateway from its command's options to its end."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, start_http_server

from taskmem.config import load_profile
from taskmem.errors import UserError
from taskmem.gateway.app import gateway_app
from taskmem.gateway.gateway import Gateway
from taskmem.gateway.metrics import Metrics
from taskmem.gateway.responses import ResponseLog
from taskmem.gateway.settings import read_settings
from taskmem.service import ServiceLog, serve
from taskmem.store import open_store


def serve_gateway(
    *,
    store: str,
    policy_server: str,
    adapters: Path,
    responses: Path,
    image: str,
    instance: str,
    host: str,
    port: int,
    operations_port: int,
    settings: Path | None,
    profile: str,
) -> None:
    """Serve until a signal ends it. UserError for whatever keeps it from starting; a policy's server may come up later."""
    chosen = read_settings(settings)
    if urlsplit(policy_server).scheme not in ("http", "https") or not urlsplit(policy_server).hostname:
        raise UserError(f"--policy-server {policy_server}: not an http(s) URL; give one like http://127.0.0.1:8000")
    log = ServiceLog("gateway", sys.stderr, _now)
    with ResponseLog(responses, instance) as answered:
        gateway = Gateway(
            # tokens and the registry are read, nothing is written
            open_store(store, read_only=True),
            policy_server,
            adapters,
            answered,
            chosen,
            log,
            image,
            load_profile(profile),
            _now,
        )
        gateway.adapters.prepare()
        log.write("operations", host=host, port=operations(gateway.metrics, host, operations_port))
        serve(gateway_app(gateway), host, port, chosen.limits, log)


def operations(metrics: Metrics, host: str, port: int) -> int:
    """All metrics at http://host:port/metrics, with environments' names; the port. UserError if the address is taken."""

    class Everything(CollectorRegistry):
        def collect(self):  # type: ignore[no-untyped-def]
            yield from metrics.registry.collect()
            yield from metrics.named.collect()

    try:
        server, _ = start_http_server(port, host, Everything())
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "no such port"
        raise UserError(f"{host}:{port}: cannot listen there ({why}); give another --operations-port") from None
    return int(server.server_port)


def _now() -> datetime:
    return datetime.now(UTC)
