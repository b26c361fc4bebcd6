"""Registry: the adapters of every environment as immutable versions, and which of them is champion.

Below `registry/<environment>/` in an object store:

    versions/v<N>         the Manifest of one version; it is written last, so a version is whole or not there
    files/<sha256>        the bytes of its files
    champion              the Pointer, moved by compare-and-swap
    verdicts/<sha256>     the gate's verdicts that pointers name
    watermark             how far the environment's feedback has been used
"""

from taskmem.registry.champion import ChampionMovedError, Pointer, champion, promote, read_verdict
from taskmem.registry.manifest import Manifest, Provenance, VersionName
from taskmem.registry.state import WatermarkMovedError, advance, watermark
from taskmem.registry.versions import AdapterReader, fetch, publish, read_manifest, versions

__all__ = [
    "AdapterReader",
    "ChampionMovedError",
    "Manifest",
    "Pointer",
    "Provenance",
    "VersionName",
    "WatermarkMovedError",
    "advance",
    "champion",
    "fetch",
    "promote",
    "publish",
    "read_manifest",
    "read_verdict",
    "versions",
    "watermark",
]
