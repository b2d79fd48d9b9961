"""Kill -9, two writers, flipped and cut bytes, a full disk: never a wrong feature, and the fill goes on."""

import ctypes
import errno
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, MissingFeatures, array_key, extract, store_info
from anomaly_lib.features.layout import checksum_of
from anomaly_lib.features.shards import ShardWriter

SPEC = FeatureSpec(backbone="net", weights="00", outputs=("tokens", "pooled"), transform="none")
COUNT = 60
FORK = multiprocessing.get_context("fork")


def key(index: int) -> str:
    return array_key(np.array(index))


def row(index: int) -> dict[str, Tensor]:
    values = torch.full((1, 16, 8), float(index)) + torch.arange(8.0)
    return {"tokens": values, "pooled": values.mean(1)}


def fill(root: Path, *, count: int = COUNT, pause: float = 0.0, share: tuple[int, int] = (0, 1)) -> int:
    """Fill the store; the number of rows that had to be encoded."""
    encoded = 0

    def encode(batch: Tensor) -> dict[str, Tensor]:
        nonlocal encoded
        time.sleep(pause)
        encoded += len(batch)
        parts = [row(int(i)) for i in batch]
        return {name: torch.cat([part[name] for part in parts]) for name in SPEC.outputs}

    with FeatureStore(SPEC, root=root, cache="disk") as store:
        extract(encode, list(range(count)), store, load=torch.tensor, key=key, batch_size=4, share=share)
    return encoded


def check(root: Path, *, complete: bool = False, count: int = COUNT) -> int:
    """Every row there is right; how many there are."""
    store = FeatureStore(SPEC, root=root)
    found = 0
    for index in range(count):
        try:
            got = store.rows([key(index)])
        except MissingFeatures:
            continue
        found += 1
        for name, value in row(index).items():
            assert torch.equal(got[name], value), f"row {index}, {name}"
    assert found == count or not complete
    store.close()
    return found


def in_child(work: Callable[..., object], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Forked children must not wait for the parent's thread pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_kill_9_twenty_times_during_fill(tmp_path: Path) -> None:
    generator, grown, count = random.Random(0), [0], 2000
    for _ in range(20):
        before = written(tmp_path)
        child = in_child(slow_fill, tmp_path, 0.002, count)
        while written(tmp_path) == before:  # a busy machine may need a while to get going
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.01))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        grown.append(check(tmp_path, count=count))
    assert grown == sorted(grown)  # nothing finished is lost
    assert 40 < grown[-1] < count
    assert fill(tmp_path, count=count) == count - grown[-1]
    check(tmp_path, complete=True, count=count)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*.rows"))) == 1  # every run went on in the dead one's shard


def test_kill_9_of_one_rank(tmp_path: Path) -> None:
    """Two processes stand for the ranks of torchrun; one dies in the middle, both are started again."""
    shards: list[int] = []
    dying = in_child(rank_fill, tmp_path, 1, 0.3)
    while not written(tmp_path):
        time.sleep(0.001)
    other = in_child(rank_fill, tmp_path, 0, 0.0)
    while len(shards) < 2 or not all(shards):
        shards = [file.stat().st_size for file in tmp_path.glob("*/*.rows")]
    assert dying.pid is not None
    os.kill(dying.pid, signal.SIGKILL)
    dying.join()
    other.join()
    assert (dying.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    kept = check(tmp_path, count=400)
    assert 200 < kept < 400  # all of rank 0, not all of rank 1
    assert fill(tmp_path, count=400, share=(0, 2)) == 0
    assert fill(tmp_path, count=400, share=(1, 2)) == 400 - kept
    check(tmp_path, complete=True, count=400)
    rows = sum(file.stat().st_size for file in tmp_path.glob("*/*.rows")) // ((16 * 8 + 8) * 4)
    assert rows == 400  # nothing was encoded twice
    assert len(list(tmp_path.glob("*/*.rows"))) == 2  # and the dead rank's shard was continued


def rank_fill(root: Path, rank: int, pause: float) -> None:
    fill(root, count=400, pause=pause, share=(rank, 2))


def slow_fill(root: Path, pause: float = 0.01, count: int = COUNT) -> None:
    fill(root, pause=pause, count=count)


def written(root: Path) -> int:
    return sum(file.stat().st_size for file in root.glob("*/*.rows"))


def test_cut_at_any_byte(tmp_path: Path) -> None:
    fill(tmp_path / "whole", count=6)
    (folder,) = (tmp_path / "whole").iterdir()
    sizes = {name: (folder / name).stat().st_size for name in ("00000.index", "00000.rows")}
    row_bytes, record = sizes["00000.rows"] // 6, sizes["00000.index"] // 6
    cuts = [("00000.index", at) for at in range(sizes["00000.index"])]
    cuts += [("00000.rows", at) for at in range(0, sizes["00000.rows"], 97)]
    root = tmp_path / "cut"
    for name, at in cuts:
        shutil.copytree(folder, root / folder.name)
        os.truncate(root / folder.name / name, at)
        assert check(root) == at // (record if name.endswith("index") else row_bytes), (name, at)
        if at % 11 == 0:
            fill(root)
            check(root, complete=True)
        shutil.rmtree(root)


def test_a_flipped_byte_anywhere_is_never_used(tmp_path: Path) -> None:
    fill(tmp_path / "whole", count=3)
    (folder,) = (tmp_path / "whole").iterdir()
    root = tmp_path / "flipped"
    for name, step in (("00000.index", 1), ("00000.rows", 41)):
        for at in range(0, (folder / name).stat().st_size, step):
            shutil.copytree(folder, root / folder.name)
            damaged = bytearray((folder / name).read_bytes())
            damaged[at] ^= 1 << (at % 8)
            (root / folder.name / name).write_bytes(damaged)
            assert check(root) == 2, (name, at)  # the damaged row is missing, the others are right
            if at % 13 == 0:
                assert fill(root, count=3) == 1  # and exactly it is made again
                assert check(root) == 3
            shutil.rmtree(root)


def test_a_flipped_byte_of_the_layout_or_the_spec_is_never_used(tmp_path: Path) -> None:
    fill(tmp_path / "whole", count=3)
    (folder,) = (tmp_path / "whole").iterdir()
    (whole,) = store_info(tmp_path / "whole")
    root, lost = tmp_path / "flipped", 0
    shutil.copytree(folder, root / folder.name)
    for name in ("layout.json", "spec.json"):
        raw = (folder / name).read_bytes()
        for at, bit in itertools.product(range(len(raw)), (1, None)):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << (at % 8 if bit is None else bit)  # bit 1 makes one figure another
            (root / folder.name / name).write_bytes(damaged)
            found = check(root)  # at worst the rows are missing
            (info,) = store_info(root)
            assert found in (0, 3)
            assert info.rows == found
            assert info.row == (whole.row if found else "")
            lost += name == "layout.json" and not found
            assert found or name == "layout.json"
        (root / folder.name / name).write_bytes(raw)
    assert lost > len((folder / "layout.json").read_bytes())  # all but flips in white space


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted"])
def test_a_damaged_layout_is_written_again_and_the_rows_live_on(tmp_path: Path, damage: str) -> None:
    fill(tmp_path, count=12)
    layout = next(tmp_path.iterdir()) / "layout.json"
    raw = layout.read_bytes()
    layout.unlink()
    if damage != "deleted":
        layout.write_bytes(raw.replace(b"16", b"17") if damage == "flipped" else raw[:40])
    assert check(tmp_path) == 0
    assert fill(tmp_path, count=12) == 4  # one batch says what a row is; the others are found again
    assert layout.read_bytes() == raw
    assert check(tmp_path, complete=True, count=12) == 12


def test_no_row_answers_under_a_layout_it_was_not_written_for(tmp_path: Path) -> None:
    fill(tmp_path, count=3)
    layout = next(tmp_path.iterdir()) / "layout.json"
    fields = json.loads(layout.read_bytes())["fields"]
    fields[0]["shape"].reverse()  # the same bytes, read as another shape
    layout.write_text(json.dumps({"fields": fields, "crc": checksum_of(fields)}))
    assert check(tmp_path) == 0
    with pytest.raises(UserError, match="fixed image size"):
        fill(tmp_path, count=3)


def test_two_writers_in_lockstep(tmp_path: Path) -> None:
    children = [in_child(slow_fill, tmp_path) for _ in range(2)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    check(tmp_path, complete=True)  # at worst everything is made twice, nothing is lost or mixed


def test_damage_after_opening_is_seen(tmp_path: Path) -> None:
    fill(tmp_path, count=3)
    store = FeatureStore(SPEC, root=tmp_path)
    store.rows([key(1)])
    with (store.folder / "00000.rows").open("r+b") as stream:
        stream.seek(store.layout.row_bytes + 5)  # type: ignore[union-attr]
        stream.write(b"\x99")
    with pytest.raises(MissingFeatures):
        store.rows([key(1)])
    assert store.missing([key(i) for i in range(3)]) == [key(1)]


def test_two_writers_at_once(tmp_path: Path) -> None:
    children = [in_child(slow_fill, tmp_path)]
    while not list(tmp_path.glob("*/*.rows")):
        time.sleep(0.002)
    children.append(in_child(slow_fill, tmp_path))
    for child in children:
        child.join()
        assert child.exitcode == 0
    check(tmp_path, complete=True)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*.rows"))) == 2
    rows = sum(file.stat().st_size for file in folder.glob("*.rows")) // (16 * 8 * 4 + 8 * 4)
    assert COUNT <= rows < 1.4 * COUNT  # they meet half way instead of doing everything twice


def limited(root: Path, cache: str, limit: int, answer: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """A file that may not grow beyond `limit`: write() fails half way through, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    answer.put(fill_and_read(root, cache))


def fill_and_read(
    root: Path, cache: str, before: Callable[[int], object] = lambda batch: None
) -> tuple[bool, list[str]]:
    """Are all rows there and right, and what was said; `before(n)` runs before the n-th batch is encoded."""
    said: list[str] = []
    number = itertools.count()

    def encode(batch: Tensor) -> dict[str, Tensor]:
        before(next(number))
        return {name: torch.cat([row(int(i))[name] for i in batch]) for name in SPEC.outputs}

    try:
        with FeatureStore(SPEC, root=root, cache=cache, notice=said.append) as store:
            keys = extract(encode, list(range(COUNT)), store, load=torch.tensor, key=key, batch_size=4)
            rows = store.rows(keys)["pooled"]
            return all(torch.equal(rows[i : i + 1], row(i)["pooled"]) for i in range(COUNT)), said
    except UserError as error:
        return False, [str(error)]


@pytest.mark.parametrize("cache", ["disk", "auto"])
@pytest.mark.parametrize("limit", [300, 9_000, 20_001])
def test_full_disk(tmp_path: Path, cache: str, limit: int) -> None:
    answer = FORK.Queue()
    child = in_child(limited, tmp_path, cache, limit, answer)
    finished, said = answer.get(timeout=30)
    child.join()
    assert "no space left" in said[0]
    assert str(tmp_path) in said[0]
    if cache == "auto":
        assert finished  # the rest is kept in memory and everything is right
        assert said[0].endswith("the remaining features are kept in memory")
    else:
        assert said[0].endswith("cache_dir= or cache=ram")
    kept = check(tmp_path)
    assert kept % 4 == 0  # whole batches stay
    assert kept > 0 or limit == 300
    assert fill(tmp_path) == COUNT - kept  # with space again the fill goes on
    check(tmp_path, complete=True)


# Before which batch (-1: before the store is opened) all but so many pages of 4 KiB are taken by something else. The
# first batch brings layout.json, .rows and .index, a page each; a page of rows is full in the middle of a batch.
FULL_AT = [(-1, 0), (-1, 1), *[(0, pages) for pages in range(5)], (1, 0), (2, 1), (5, 0), (5, 1), (7, 2)]


def on_a_small_disk(disk: Path, answer: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """Fill stores on a tmpfs of 64 KiB that only this process sees."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x00020000):  # CLONE_NEWUSER | CLONE_NEWNS
        return answer.put(f"no user namespace ({os.strerror(ctypes.get_errno())})")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    if libc.mount(b"none", bytes(disk), b"tmpfs", 0, b"size=64k"):
        return answer.put(f"no tmpfs ({os.strerror(ctypes.get_errno())})")
    outcomes = {}
    for cache, (when, pages) in itertools.product(("disk", "auto"), FULL_AT):
        root, ballast = disk / "cache", disk / "ballast"

        def take(batch: int, when: int = when, pages: int = pages, ballast: Path = ballast) -> None:
            if batch == when:
                ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 4096 * pages))

        take(-1)
        finished, said = fill_and_read(root, cache, take)
        ballast.unlink()
        kept = check(root)
        outcomes[cache, when, pages] = finished, said, kept, fill(root)
        check(root, complete=True)
        shutil.rmtree(root)
    answer.put(outcomes)


def test_no_space_on_a_real_file_system(tmp_path: Path) -> None:
    answer = FORK.Queue()
    child = in_child(on_a_small_disk, tmp_path, answer)
    outcomes = answer.get(timeout=60)
    child.join()
    if isinstance(outcomes, str):
        pytest.skip(f"needs a tmpfs of its own: {outcomes}")
    assert child.exitcode == 0
    kept_of = {}
    for (cache, when, pages), (finished, said, kept, refilled) in outcomes.items():
        case = (cache, when, pages)
        assert finished == (cache == "auto"), case
        assert len(said) == 1, case
        assert "\n" not in said[0]
        assert str(tmp_path / "cache") in said[0]
        assert "no space left" in said[0].lower() or "free" in said[0], case
        assert said[0].endswith("kept in memory" if cache == "auto" else ("cache_dir=", "cache=ram")), case
        assert kept % 4 == 0  # whole batches stay
        assert kept >= 4 * when, case
        assert refilled == COUNT - kept, case
        kept_of[case] = kept
    assert all(kept_of["disk", when, pages] == kept_of["auto", when, pages] for when, pages in FULL_AT)
    assert kept_of["disk", 0, 2] == 0  # the rows had room, their records had not
    assert 0 < kept_of["disk", 0, 3] < kept_of["disk", 5, 1] < COUNT


@pytest.mark.parametrize(("code", "why"), [(errno.ENOSPC, "no space left"), (errno.EIO, "cannot be written (Input")])
@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_disk_that_fails_when_rows_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, code: int, why: str
) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".rows"):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        finished, said = fill_and_read(tmp_path, cache)
    assert finished == (cache == "auto")
    assert len(said) == 1
    assert why in said[0]
    assert check(tmp_path) == COUNT
    assert fill(tmp_path, count=COUNT + 4) == 4
    assert len(list(tmp_path.glob("*/*.rows"))) == 1  # the shard was let go of


@pytest.mark.parametrize("short", [0, 1])
def test_a_full_disk_hands_over_only_what_memory_can_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    left = (COUNT - 8) * (16 * 8 + 8) * 4
    monkeypatch.setattr("anomaly_lib.features.store.available_memory", lambda: left - short)

    def full(batch: int) -> None:
        if batch == 2:
            monkeypatch.setattr(ShardWriter, "append", no_space)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    finished, said = fill_and_read(tmp_path, "auto", full)
    assert finished == (not short)
    assert len(said) == 1
    assert "no space left" in said[0]
    assert ("of memory" in said[0]) == bool(short)
    assert check(tmp_path) == 8


BIG_ROWS, BIG_SIDE = 2048, 128  # rows of 64 KiB, 128 MiB in all


def growth(root: Path, answer: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """Bytes by which this process grows while it fills a store, finds it whole and reads it."""
    spec = FeatureSpec(backbone="net", weights="00", outputs=("tokens",), transform="none")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    store = FeatureStore(spec, root=root, cache="disk")
    for _ in range(2):  # the second time every row is only verified
        keys = extract(
            lambda batch: {"tokens": batch[:, None, None] + torch.zeros(BIG_SIDE, BIG_SIDE)},
            list(range(BIG_ROWS)), store, load=lambda i: torch.tensor(float(i)), key=key, batch_size=8,
        )  # fmt: skip
    right = all(
        torch.equal(store.rows(keys[i : i + 8])["tokens"][:, 3, 5], torch.arange(i, i + 8.0))
        for i in range(0, BIG_ROWS, 8)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.put((right, peak - pages * os.sysconf("SC_PAGE_SIZE"), written(root)))


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    answer = FORK.Queue()
    child = in_child(growth, tmp_path, answer)
    right, grown, size = answer.get(timeout=300)
    child.join()
    assert right
    assert size == BIG_ROWS * BIG_SIDE**2 * 4
    assert grown < size / 4, f"{grown / 2**20:.0f} MiB"


def test_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give another cache_dir="):
        FeatureStore(SPEC, root=tmp_path / "file", cache="disk")
    said: list[str] = []
    assert not FeatureStore(SPEC, root=tmp_path / "file", notice=said.append).on_disk
    assert said[0].endswith("features are kept in memory")
