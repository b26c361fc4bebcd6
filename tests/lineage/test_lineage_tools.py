"""git and dvc as tools: bounded in time, told apart by their URLs, and a failure is one line without credentials."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lineage_parts import dvc, git

from taskmem.errors import UserError
from taskmem.lineage import tools
from taskmem.lineage.dvc import Dvc, known_remote, remote_url
from taskmem.lineage.git import Git, PushRejectedError, Remote, is_folder, new_repository
from taskmem.lineage.tools import Said, run_tool, without_userinfo

PYTHON = (sys.executable, "-c")


def test_a_tool_gets_its_input_its_folder_and_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/somebody/else/s")
    monkeypatch.setenv("KEPT", "kept")
    code = "import os, sys; print(os.getcwd(), sys.stdin.read(), *map(os.environ.get, ('GIT_DIR', 'KEPT', 'OWN')))"
    said = run_tool((*PYTHON, code), tmp_path, {"OWN": "own"}, 60, given="größe", without=("GIT_",))
    assert (said.code, said.out, said.err) == (0, f"{tmp_path} größe None kept own\n", "")


def test_a_tool_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^sleep 50: not done after 0\.5 s; try again when it is there$"):
        run_tool(("sleep", "50"), tmp_path, {}, 0.5)
    assert time.monotonic() - start < 5


def test_a_tool_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "GRACE", 0.5)
    code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    code += "print(os.getpid(), file=open('pid', 'w'), flush=True); time.sleep(50)"
    start = time.monotonic()
    with pytest.raises(UserError, match="not done after 2 s"):
        run_tool((*PYTHON, code), tmp_path, {}, 2)
    assert time.monotonic() - start < 20
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_what_a_tool_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    start = time.monotonic()
    code = "import subprocess; print(subprocess.Popen(['sleep', '50']).pid, flush=True)"
    said = run_tool((*PYTHON, code), tmp_path, {}, 60)
    assert time.monotonic() - start < 20
    os.kill(int(said.out), signal.SIGKILL)


def test_a_tool_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no-such-tool: not installed, and lineage is recorded with it; install it$"):
        run_tool(("no-such-tool", "run"), tmp_path, {}, 60)


@pytest.mark.parametrize(
    ("out", "err", "reason"),
    [
        ("", "warning: x\nfatal: repository 'https://u:p@h/x' not found\nmore\n", "repository 'https://h/x' not found"),
        ("", "ERROR: failed to push - s3://key:se:cret@b/x.\n", "failed to push - s3://b/x"),
        ("last\x1b[31m line\n", "", r"last\x1b[31m line"),
        ("", "", "exit status 3"),
    ],
)
def test_a_failure_is_told_in_one_line_without_credentials(out: str, err: str, reason: str) -> None:
    assert Said(3, out, err).reason == reason


def test_only_the_user_and_the_password_are_taken_out_of_a_url() -> None:
    assert without_userinfo("at ssh://git:x@h/a@b and git@h:c") == "at ssh://h/a@b and git@h:c"


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/prefix/", "s3://bucket/a/prefix"),
        ("/a/folder", "/a/folder"),
        ("file:///a/fol%20der", "/a/fol der"),
    ],
)
def test_a_remote_is_a_bucket_or_a_folder(url: str, known: str) -> None:
    assert remote_url(url) == known


def test_a_folder_s_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert remote_url("data") == str(tmp_path / "data")
    assert Remote.parse("data/x.git").url == str(tmp_path / "data/x.git")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "remote (empty): neither s3:// nor a folder"),
        ("gs://bucket", "remote gs://bucket: neither s3:// nor a folder"),
        ("file://host/a", "remote file://host/a: neither s3:// nor a folder"),
        ("s3:///prefix", "remote s3:///prefix: names no bucket"),
        ("s3://key:secret@bucket/p", "remote s3://bucket/p: more than bucket and prefix; AWS's own variables or files"),
        ("s3://bucket/p?key=secret", "remote s3://bucket/p: more than bucket and prefix; AWS's own variables or files"),
        ("http://[::1", "remote http://[::1: not a URL"),
        ('/a"b', 'remote /a"b: has characters that no file of settings can hold'),
        ("/a\nb", r"remote /a\nb: has characters that no file of settings can hold"),
    ],
)
def test_what_is_no_remote_is_refused_and_no_secret_repeated(url: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        remote_url(url)
    assert str(refused.value).startswith(why)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "why"), [("", "(empty)"), ("--upload-pack=x", "--upload-pack=x"), ("http://[", "http://[")]
)
def test_what_is_no_git_url_is_refused(url: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        Remote.parse(url)
    assert str(refused.value).startswith(f"lineage {why}: not ")


def test_a_url_s_credentials_go_to_git_s_environment_for_that_host_alone() -> None:
    remote = Remote.parse("https://ada:pa%2Fss@git.test:8443/a/b.git")
    assert (remote.url, remote.shown) == ("https://git.test:8443/a/b.git",) * 2
    given = remote.variables({"GIT_CONFIG_COUNT": "2"})
    assert given == {
        "GIT_CONFIG_COUNT": "3",
        "GIT_CONFIG_KEY_2": "http.https://git.test:8443/.extraHeader",
        "GIT_CONFIG_VALUE_2": "Authorization: Basic YWRhOnBhL3Nz",
    }
    # a token alone
    assert Remote.parse("https://token@git.test/b").variables({})["GIT_CONFIG_VALUE_0"].endswith(" dG9rZW46")
    for url in ("git@git.test:b.git", "ssh://git@git.test/b.git", "https://git.test/b"):
        assert Remote.parse(url) == Remote(url)
        assert Remote.parse(url).variables({}) == {}


def test_a_path_is_told_from_a_host() -> None:
    assert [is_folder(u) for u in ("/a/b", "a/b", "./a:b", "host:a/b", "git@host:b", "file:///a")] == [
        *(True, True, True),
        *(False, False, False),
    ]


@pytest.mark.parametrize("identity", ["", "Ada", "<ada@test>", "Ada <>", "Ada <a@test> x", "Ada\n<a@test>"])
def test_an_identity_is_a_name_and_an_address(tmp_path: Path, identity: str) -> None:
    new_repository(tmp_path / "r.git")
    with pytest.raises(UserError, match=r"give a name and an address, as in taskmem lineage <lineage@taskmem>$"):
        Git.clone(str(tmp_path / "r.git"), tmp_path / "clone", identity)
    assert not (tmp_path / "clone").exists()


def test_what_is_there_is_never_made_a_repository(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(UserError) as refused:
        Git.clone(str(tmp_path / "full"), tmp_path / "clone")
    assert str(refused.value).startswith(
        f"{tmp_path / 'full'}: repository '{tmp_path / 'full'}' does not exist; give the"
    )
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    new_repository(tmp_path / "r.git")
    before = (tmp_path / "r.git" / "config").stat().st_mtime_ns
    new_repository(tmp_path / "r.git")
    assert (tmp_path / "r.git" / "config").stat().st_mtime_ns == before
    assert not list(tmp_path.glob(".r.git.*"))


def test_commits_and_tags_need_no_configuration_and_run_no_hook_of_the_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_repository(tmp_path / "r.git")
    (tmp_path / "hooks").mkdir()
    hook = tmp_path / "hooks" / "pre-push"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    (tmp_path / ".gitconfig").write_text(f"[core]\n hooksPath = {tmp_path}/hooks\n[commit]\n gpgSign = true\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / ".gitconfig"))
    # as in a hook of another repository
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "somebody else's"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "somebody else's index"))
    one = Git.clone(str(tmp_path / "r.git"), tmp_path / "one", "Ada <ada@test>")
    two = Git.clone(str(tmp_path / "r.git"), tmp_path / "two")
    assert (one.head(), one.branches(), one.tags(), one.branch) == (None, [], {}, "main")
    (tmp_path / "one" / "a").write_text("1")
    first = one.commit(one.stage(None, ["b"], ["a"]), None, "first\n\nRun: 1\n")
    one.push(first, {"v@1": one.tag("v@1", first, "v@1\n\nManifest: x\n")})
    (tmp_path / "two" / "a").write_text("2")
    second = two.commit(two.stage(None, ["b"], ["a"]), None, "second\n")
    with pytest.raises(PushRejectedError, match=r"r\.git: refused the push \(\[rejected\] \(fetch first\)\)"):
        two.push(second, {"v@2": two.tag("v@2", second, "v@2\n")})
    two.fetch()
    assert (two.head(), list(two.tags()), two.trailers(first, "Run")) == (first, ["v@1"], {"1": first})
    assert two.tag_message("v@1") == "v@1\n\nManifest: x"
    assert two.tag_message("v@2") is None
    assert (two.read(first, "a"), two.read(first, "b")) == (b"1", None)
    monkeypatch.undo()
    assert git(tmp_path / "r.git", "log", "-1", "--format=%an %ae %s", "main") == "Ada ada@test first"
    assert not list(tmp_path.glob("somebody*"))


def test_a_remote_is_set_in_dvc_s_own_settings_and_others_stay(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "repo")
    folder, aside = tmp_path / "repo", tmp_path / "aside"
    Dvc(folder, aside, "s3://b/p").set_up()
    ours = {name: (folder / name).read_text() for name in (".dvc/.gitignore", ".dvcignore")}
    assert dvc(folder, "remote", "list").split() == ["lineage", "s3://b/p", "(default)"]
    dvc(folder, "remote", "modify", "lineage", "region", "eu-central-1")
    Dvc(folder, aside, "/a, b # é %/c").set_up()
    config = (folder / ".dvc/config").read_bytes()
    assert known_remote(config) == "/a, b # é %/c"
    assert b"region = eu-central-1" in config
    assert b"analytics = false" in config
    assert (known_remote(None), known_remote(b"[core]\n")) == (None, None)
    git(tmp_path, "init", "--quiet", "theirs")
    dvc(tmp_path / "theirs", "init")
    assert ours == {name: (tmp_path / "theirs" / name).read_text() for name in ours}
    with pytest.raises(UserError, match=r"^lineage repository: \.dvc/config: cannot be read; mend it there$"):
        known_remote(b"no settings at all")


def test_dvc_says_what_went_wrong_and_knows_no_settings_of_the_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config" / "dvc").mkdir(parents=True)
    (tmp_path / "config" / "dvc" / "config").write_text("no settings at all")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "repo")], check=True)
    tool = Dvc(tmp_path / "repo", tmp_path / "aside", str(tmp_path / "remote"))
    tool.set_up()
    with pytest.raises(UserError) as refused:
        tool.add(["missing"])
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'repo'}: dvc add: output 'missing' does not exist")
    assert said.endswith("; run the stage again")
