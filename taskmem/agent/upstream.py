"""What the agent asks the gateway and the registry: which adapter an environment has, and its weights' digest."""

import threading
from collections import OrderedDict

import httpx2

from taskmem.agent.protocol import Served
from taskmem.endpoint.keys import ApiKey
from taskmem.errors import UserError
from taskmem.gateway.tokens import POLICY
from taskmem.registry import read_manifest
from taskmem.store import Store

SECONDS = 10.0
REMEMBERED = 10_000


class Upstream:
    """Implements `serving.Lookup`; thread-safe. `policy` is the digest of the policy that the agent writes for."""

    def __init__(self, gateway: str, store: Store, policy: str) -> None:
        self._store, self._policy = store, policy
        self._client = httpx2.Client(base_url=gateway, timeout=SECONDS, trust_env=False)
        self._weights: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def served(self, environment: str, key: ApiKey) -> Served:
        """See `Lookup.served`."""
        try:
            response = self._client.get(
                f"/v1/models/{environment}", headers={"Authorization": f"Bearer {key.reveal()}"}
            )
            root = response.json()["root"] if response.status_code == httpx2.codes.OK else None
        except (httpx2.TransportError, ValueError, KeyError, TypeError):
            root = None
        if not isinstance(root, str):
            raise UserError("gateway: does not say what it serves; see its own log")
        return Served(self._policy, "none" if root == POLICY else root)

    def weights(self, adapter: str) -> str:
        """See `Lookup.weights`; a version never changes, so each is looked up once."""
        with self._lock:
            if adapter in self._weights:
                self._weights.move_to_end(adapter)
                return self._weights[adapter]
        environment, _, version = adapter.rpartition("@")
        digest = read_manifest(self._store, environment, version).files.adapter_model
        with self._lock:
            self._weights[adapter] = digest
            if len(self._weights) > REMEMBERED:
                self._weights.popitem(last=False)
        return digest

    def close(self) -> None:
        """Close connections."""
        self._client.close()
