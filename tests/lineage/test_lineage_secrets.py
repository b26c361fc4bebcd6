"""Over HTTP and S3, with credentials: everything arrives, and the credentials are written nowhere."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from git_server import serving
from lineage_parts import ENDED, Night, Place, dvc, every_object, files, git, night, place
from s3_servers import ACCESS_KEY, SECRET_KEY, environment, rclone

from taskmem.errors import UserError
from taskmem.lineage.repository import record_run

USER, PASSWORD = "auditor", "pass-word-of-the-auditor/%"
JUDGE = "sk-the-judge-s-own-key"
CANARIES = (ACCESS_KEY, SECRET_KEY, PASSWORD, "pass-word-of-the-auditor", JUDGE)
STEPS = ["cloned", "laid", "added", "hashed", "data pushed", "committed", "tagged", "pushed"]


def told(data: bytes) -> list[str]:
    """The canaries in some bytes, also as they stand in a header."""
    forms = {c: (c.encode(), b64encode(f"{USER}:{c}".encode())) for c in CANARIES}
    return [canary for canary, shapes in forms.items() if any(shape in data for shape in shapes)]


def found_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and told(path.read_bytes())]


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, str]]:
    """A place whose repository is reached over HTTP, its URL with credentials, and whose remote is a bucket."""
    (tmp_path / "buckets" / "lineage").mkdir(parents=True)
    where = place(tmp_path, "s3://lineage/some/prefix")
    git(where.lineage, "config", "http.receivepack", "true")
    monkeypatch.setenv("TASKMEM_JUDGE_API_KEY", JUDGE)
    with rclone(tmp_path / "buckets") as endpoint, serving(tmp_path, USER, PASSWORD) as address:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        # dvc takes a device for no file
        (tmp_path / "aws").touch()
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
        yield where, f"http://{USER}:{quote(PASSWORD, safe='')}@{address}/lineage.git"


def test_credentials_open_every_door_and_are_written_nowhere(tmp_path: Path, away: tuple[Place, str]) -> None:
    where, url = away
    run = night(where, ended={"shop": ENDED["shop"]})
    heard: list[str] = []

    def look(step: str) -> None:
        heard.append(step)
        assert found_below(tmp_path) == [], step

    commit = record_run(run.run(), url, where.remote, where.store, run.root / "work", note=look)
    assert heard == STEPS
    assert where.head() == commit
    assert where.tags() == {"shop@v1": commit}
    assert found_below(tmp_path) == []
    assert told(every_object(where.lineage)) == []
    assert told(where.git("log", "--format=%B%n%an %ae %cn %ce", "main").encode()) == []
    check_clone(tmp_path, where, run)


def check_clone(tmp_path: Path, where: Place, run: Night) -> None:
    """A fresh clone elsewhere gets the bytes from the bucket, and is in sync with it."""
    clone = where.clone(tmp_path / "elsewhere" / "clone")
    assert files(clone / "shared/policy") == files(run.root / "policy")
    assert files(clone / "environments/shop/adapter") == files(run.made("shop", "adapters"))
    assert dvc(clone, "status", "-c") == "Cache and remote 'lineage' are in sync."
    assert found_below(clone) == []
    assert list((tmp_path / "buckets/lineage/some/prefix/files/md5").rglob("*.dir"))


def test_who_is_not_let_in_is_told_where_and_not_with_what(tmp_path: Path, away: tuple[Place, str]) -> None:
    where, url = away
    run = night(where, ended={"home": ENDED["home"]})
    address = url.rpartition("@")[2]
    with pytest.raises(UserError) as refused:
        record_run(run.run(), f"http://{USER}:wrong-{JUDGE}@{address}", where.remote, where.store, run.root / "work")
    said = str(refused.value)
    assert said.startswith(f"http://{address}: ")
    assert "give the URL of a git repository that can be written to" in said
    assert told(said.encode()) == []
    assert "\n" not in said


def test_a_remote_that_cannot_be_reached_is_named_and_nothing_is_committed(
    tmp_path: Path, away: tuple[Place, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, _ = away
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"not-{SECRET_KEY}")
    run = night(where, ended={"home": ENDED["home"]})
    with pytest.raises(UserError) as refused:
        run.record()
    said = str(refused.value)
    assert said.startswith("remote s3://lineage/some/prefix: ")
    assert said.endswith("; check its URL and your credentials")
    assert told(said.encode()) == []
    assert where.git("for-each-ref") == ""
