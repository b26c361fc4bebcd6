"""Registry: the adapters of every environment as immutable versions, and which of them is champion.

Below `registry/<environment>/` in an object store:

    versions/v<N>         the Manifest of one version; it is written last, so a version is whole or not there
    files/<sha256>        the bytes of its files
    champion              the Pointer, moved by compare-and-swap
    log/<sha256>          the Promotion of every move of it, each chained to the one before; written before the pointer moves
    verdicts/<sha256>     the gate's verdicts that those name
    challenger            the version last published
    watermark             how far the environment's feedback has been used
    migration             the policy change that its feedback was last made free for

and for all environments `policies/current`, the policy that is served, with its log `policies/log/<sha256>`.
"""

from taskmem.registry.challenger import challenge, challenger, kept_in_a_row
from taskmem.registry.champion import ChampionMovedError, Pointer, champion, promote, promotion_log, read_verdict
from taskmem.registry.log import Promotion
from taskmem.registry.manifest import Files, Manifest, Provenance, VersionName
from taskmem.registry.migration import Standing, migrate, standing, standings
from taskmem.registry.objects import environments
from taskmem.registry.policies import (
    CurrentPolicy,
    PolicyChange,
    PolicyMovedError,
    current_policy,
    eligible,
    policy_log,
    serving_adapter,
    set_policy,
)
from taskmem.registry.rollback import NO_ADAPTER, rollback
from taskmem.registry.state import WatermarkMovedError, advance, reset, watermark
from taskmem.registry.verify import Damage, verify, verify_policies
from taskmem.registry.versions import AdapterReader, adopt, fetch, publish, read_manifest, versions

__all__ = [
    "NO_ADAPTER",
    "AdapterReader",
    "ChampionMovedError",
    "CurrentPolicy",
    "Damage",
    "Files",
    "Manifest",
    "Pointer",
    "PolicyChange",
    "PolicyMovedError",
    "Promotion",
    "Provenance",
    "Standing",
    "VersionName",
    "WatermarkMovedError",
    "adopt",
    "advance",
    "challenge",
    "challenger",
    "champion",
    "current_policy",
    "eligible",
    "environments",
    "fetch",
    "kept_in_a_row",
    "migrate",
    "policy_log",
    "promote",
    "promotion_log",
    "publish",
    "read_manifest",
    "read_verdict",
    "reset",
    "rollback",
    "serving_adapter",
    "set_policy",
    "standing",
    "standings",
    "verify",
    "verify_policies",
    "versions",
    "watermark",
]
