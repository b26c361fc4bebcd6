"""The trunk cache: what it gives back is what was put in, or it says so and gives nothing."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from taskmem.errors import UserError
from taskmem.phase_two.cache import TrunkCache, TrunkKey

PLENTY = 1 << 30
WRITER = """
import sys, torch
from pathlib import Path
from taskmem.errors import UserError
from taskmem.phase_two.cache import TrunkCache, TrunkKey
folder, bound, size, first, count = Path(sys.argv[1]), *map(int, sys.argv[2:])
try:
    cache = TrunkCache(folder, bound)
    print("open", flush=True)
    for i in range(first, first + count):
        key = TrunkKey("0" * 64, 1, "saved", f"{i:064d}")
        cache.put(key, {"hidden": torch.full((size,), float(i))})
        cache = TrunkCache(folder, bound)  # a run of its own, which lets go of what it wrote
        back = cache.get(TrunkKey("0" * 64, 1, "saved", f"{max(0, i - 1):064d}"))
        assert back is None or bool((back["hidden"] == max(0, i - 1)).all())
        assert not cache.damaged
except UserError as error:
    print(f"UserError: {error}")
"""


def key(number: int = 0, **changes: object) -> TrunkKey:
    return TrunkKey(**{"policy": "0" * 64, "layer": 1, "dtype": "saved", "context": f"{number:064d}", **changes})  # type: ignore[arg-type]


def tensors(number: int = 0, size: int = 64) -> dict[str, torch.Tensor]:
    states = torch.randn(size, 8, generator=torch.Generator().manual_seed(number))
    visual = torch.arange(size) % 3 == 0
    return {
        "hidden": states.bfloat16(),
        "visual": visual,
        "deepstack": torch.zeros(0, 4, 8),
        "positions": visual.long(),
    }


def same(found: dict[str, torch.Tensor] | None, wanted: dict[str, torch.Tensor]) -> bool:
    return found is not None and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted
    )


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def writer(folder: Path, bound: int, size: int, first: int, count: int) -> list[str]:
    return [sys.executable, "-c", WRITER, str(folder), str(bound), str(size), str(first), str(count)]


def test_what_was_put_in_comes_back_bit_by_bit_also_to_another_run(tmp_path: Path) -> None:
    TrunkCache(tmp_path, PLENTY).put(key(), tensors())
    assert same(TrunkCache(tmp_path, PLENTY).get(key()), tensors())


def test_an_entry_is_mapped_not_read(tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, PLENTY)
    cache.put(key(), tensors())
    held = cache.get(key())
    assert held is not None
    assert str(entries(tmp_path)[0]) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "change",
    [{"policy": "1" * 64}, {"layer": 2}, {"dtype": "float64"}, {"context": "1" * 64}, {"candidate": "0" * 64}],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_key_tells_entries_apart(tmp_path: Path, change: dict[str, object]) -> None:
    cache = TrunkCache(tmp_path, PLENTY)
    cache.put(key(), tensors())
    assert cache.get(key(**change)) is None
    assert cache.damaged == []


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = TrunkCache(tmp_path, PLENTY)
    cache.put(key(), tensors())
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    rng = random.Random(0)
    for place in [0, 7, 8, len(whole) - 1, *rng.sample(range(len(whole)), 100)]:
        torn = bytearray(whole)
        torn[place] ^= 1 << rng.randrange(8)
        path.write_bytes(torn)
        assert cache.get(key()) is None, place
        assert not path.exists()
        assert f"{path}: damaged (" in capsys.readouterr().err
    cache.put(key(), tensors())
    assert same(cache.get(key()), tensors())


def test_a_cut_off_or_longer_entry_is_found(tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, PLENTY)
    cache.put(key(), tensors())
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    for torn in [whole[:cut] for cut in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1)] + [whole + b"\0"]:
        path.write_bytes(torn)
        assert cache.get(key()) is None
    assert cache.damaged == [key().file] * 7


def test_an_entry_in_anothers_place_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = TrunkCache(tmp_path, PLENTY)
    cache.put(key(1), tensors(1))
    (tmp_path / key(1).file).rename(tmp_path / key(2).file)
    assert cache.get(key(2)) is None
    assert "it holds another entry, or" in capsys.readouterr().err


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    first = TrunkCache(tmp_path, PLENTY)
    for number in range(3):
        first.put(key(number), tensors(number))
        os.utime(tmp_path / key(number).file, ns=(number, number))
    assert first.get(key(0)) is not None
    size = entries(tmp_path)[0].stat().st_size
    later = TrunkCache(tmp_path, 3 * size)
    later.put(key(3), tensors(3))
    assert [number for number in range(4) if later.get(key(number)) is not None] == [0, 2, 3]


def test_the_bound_holds_whatever_became_of_the_counter_and_of_entries(tmp_path: Path) -> None:
    size = 0
    for number, counter in enumerate(["", "x", "0" * 5000, "999999999", None, ""]):
        cache = TrunkCache(tmp_path, 2 * size if size else PLENTY)
        cache.put(key(number), tensors(number))
        size = entries(tmp_path)[0].stat().st_size
        assert sum(path.stat().st_size for path in entries(tmp_path)) <= 2 * size
        if counter is None:
            (tmp_path / ".size").unlink()
        else:
            (tmp_path / ".size").write_text(counter)


def test_what_a_run_holds_stays_readable_when_another_evicts_it(tmp_path: Path) -> None:
    one = TrunkCache(tmp_path, PLENTY)
    one.put(key(0), tensors(0))
    held = one.get(key(0))
    size = entries(tmp_path)[0].stat().st_size
    TrunkCache(tmp_path, size).put(key(1), tensors(1))
    assert len(entries(tmp_path)) == 1
    assert same(held, tensors(0))


def test_a_run_that_needs_more_than_the_bound_is_refused_and_leaves_no_more_than_that(tmp_path: Path) -> None:
    probe = TrunkCache(tmp_path / "probe", PLENTY)
    probe.put(key(), tensors())
    bound = 2 * entries(tmp_path / "probe")[0].stat().st_size
    cache = TrunkCache(tmp_path / "cache", bound)
    cache.put(key(0), tensors(0))
    cache.put(key(1), tensors(1))
    with pytest.raises(UserError, match=r"phase_two\.trunk_cache_bytes is \d+; raise it") as refusal:
        cache.put(key(2), tensors(2))
    assert str(tmp_path / "cache") in str(refusal.value)
    assert same(cache.get(key(0)), tensors(0))
    assert len(entries(tmp_path / "cache")) == 2


def limited(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_file_size_limit_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    done = subprocess.run(
        writer(tmp_path, PLENTY, 1_000_000, 0, 1),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: limited(tmp_path),
    )
    assert f"UserError: {tmp_path}: no room for 4000" in done.stdout
    assert "free space there, or put the trunk cache elsewhere" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".size"]


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*mount, f"mount -t tmpfs -o size=1m none {tmp_path}"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    command = f'mount -t tmpfs -o size=1m none {tmp_path} && "$@"; ls -A {tmp_path}'
    run = [*mount, command, "sh", *writer(tmp_path, PLENTY, 100_000, 0, 5)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    opened, refusal, *left = done.stdout.splitlines()
    assert opened == "open"
    assert refusal.startswith(f"UserError: {tmp_path}: no room for 400")
    assert sorted(left) == sorted([".lock", ".size", *(key(number).file for number in (0, 1))])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot hold the trunk cache"):
        TrunkCache(tmp_path / "file" / "cache", PLENTY)


def test_a_writer_that_is_killed_leaves_whole_entries_or_none(tmp_path: Path) -> None:
    run = subprocess.Popen(writer(tmp_path, PLENTY, 500_000, 0, 10_000), stdout=subprocess.PIPE)
    assert run.stdout
    run.stdout.readline()
    while len(entries(tmp_path)) < 3:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    cache = TrunkCache(tmp_path, PLENTY)
    found = [cache.get(key(number)) for number in range(len(entries(tmp_path)))]
    assert all(found)
    assert cache.damaged == []
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))


def test_several_processes_share_a_folder_that_holds_a_few_entries_only(tmp_path: Path) -> None:
    bound = 3 * 41_000
    runs = [
        subprocess.Popen(
            writer(tmp_path, bound, 10_000, 5 * i, 15), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    for run in runs:
        out, error = run.communicate(timeout=120)
        assert (run.returncode, out, error) == (0, "open\n", "")
    assert 1 <= len(entries(tmp_path)) <= 3
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= bound
