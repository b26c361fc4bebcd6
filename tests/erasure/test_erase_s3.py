"""Store and remote in buckets that keep old versions: these go too."""

from pathlib import Path
from typing import Any

import pytest
from erasure_parts import Site, build
from erasure_texts import CANARY, CONTEXTS, OTHERS, OURS, forms, holding
from s3_servers import client, lead, moto, new_bucket

from taskmem.store import open_store


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lead(monkeypatch, moto())
    # DVC insists on files
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    return [new_bucket(), new_bucket()]


def versioned(bucket: str) -> None:
    client(moto()).put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def versions(bucket: str) -> list[tuple[str, bytes]]:
    """Every version of every object."""
    s3: Any = client(moto())
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket)
    found = [(entry["Key"], entry["VersionId"]) for page in pages for entry in page.get("Versions", ())]
    return [(key, s3.get_object(Bucket=bucket, Key=key, VersionId=v)["Body"].read()) for key, v in found]


def holds(bucket: str) -> list[str]:
    return [key for key, data in versions(bucket) if any(form in data for form in forms(CANARY))]


def test_no_version_of_an_object_holds_the_canary(tmp_path: Path, buckets: list[str]) -> None:
    store, remote = buckets
    for bucket in buckets:
        versioned(bucket)
    site: Site = build(tmp_path / "site", f"s3://{store}/kept", f"s3://{remote}/lineage", whole=False)
    s3 = client(moto())
    # somebody has deleted one object already; its version stays
    gone = next(key for key in open_store(site.store).list("rollouts/") if f"/{OURS}/" in key)
    s3.delete_object(Bucket=store, Key=f"kept/{gone}")
    assert len(holds(store)) == CONTEXTS
    assert len(holds(remote)) > 10
    said = site.erase(OURS)
    assert holds(store) == holds(remote) == []
    assert holding(CANARY, site.root) == []
    assert said.adapters == ("door@v1",)
    assert not [line for line in said.remaining if "versions" in line]
    kept = {key.split("/")[3] for key in open_store(site.store).list("rollouts/")}
    assert kept == {OTHERS}
    assert (site.fresh_clone("fresh") / "shared" / "segments" / "segments.jsonl").is_file()
    assert site.erase(OURS).again
    assert site.collected("yard") == ["q7"]
