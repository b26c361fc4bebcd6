"""From `taskmem demo` to an auditor on another machine: S3 holds the data, git the history, and the adapter is made again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from s3_servers import client, environment, moto, new_bucket

from taskmem.files import sha256_tree

CANARY = "canary-0f9c2b7d4e"
TASKMEM = str(Path(sys.executable).with_name("taskmem"))


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_what_the_demo_recorded_is_pulled_elsewhere_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aws").write_text("")
    for name, value in environment(moto()).items():
        monkeypatch.setenv(name, str(tmp_path / "aws") if value == os.devnull else value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    bucket = new_bucket()
    here, lineage = tmp_path / "here", tmp_path / "lineage.git"
    said = run(TASKMEM, "demo", "--out", here, "--lineage", lineage, "--remote", f"s3://{bucket}/data")
    (question,) = [line for line in said.splitlines() if line.startswith("taskmem audit adapter object@v1")]
    store = question.split("--store ")[1].split(" ")[0]

    elsewhere = tmp_path / "elsewhere"
    run("git", "clone", "--quiet", lineage, elsewhere)
    run(sys.executable, "-m", "dvc", "pull", "--quiet", cwd=elsewhere)
    (adapter,) = (here / "runs").glob("*/*/phase-two-dpo/adapters/phase_two")
    assert sha256_tree(elsewhere / "environments" / "phase_two" / "adapter") == sha256_tree(adapter)
    verified = run(TASKMEM, "audit", "verify", "object@v1", "--store", store, "--lineage", lineage)
    assert verified.splitlines()[-1] == "object@v1: identical"

    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 1 << 28]
    assert len(kept) > 1000
    assert not [path for path in kept if CANARY.encode() in path.read_bytes()]
    s3 = client(moto())
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys
    assert not [k for k in keys if CANARY.encode() in s3.get_object(Bucket=bucket, Key=k)["Body"].read()]
