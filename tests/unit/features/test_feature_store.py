"""The store gives back what was put, across runs, modes and processes' ends; keys follow the source."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError
from anomaly_lib.features import (
    FeatureSpec,
    FeatureStore,
    MissingFeatures,
    array_key,
    clear_store,
    extract,
    file_key,
    item_key,
    store_info,
)
from anomaly_lib.systems.weld.data import demo
from anomaly_lib.systems.weld.data.demo import weld_demo_runs
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.features import run_key

SPEC = FeatureSpec(
    backbone="tiny/net", weights="ab" * 32, outputs=("layer.1", "pooled"), transform="none", image_size=(4, 4)
)


def encode(batch: Tensor) -> dict[str, Tensor]:
    """[B, 4] -> tokens [B, 3, 4] and a pooled vector [B, 4]."""
    return {"layer.1": torch.stack([batch, 2 * batch, batch.square()], 1), "pooled": batch / 3, "unused": batch}


def source(index: int) -> Tensor:
    return torch.tensor([index, index + 0.1, -index, 1.0])


def key(index: int) -> str:
    return array_key(np.array([index]))


def fill(store: FeatureStore, indices: list[int], **options: object) -> list[str]:
    return extract(encode, indices, store, load=source, key=key, batch_size=4, **options)  # type: ignore[arg-type]


def want(indices: list[int]) -> dict[str, Tensor]:
    return encode(torch.stack([source(i) for i in indices]))


def assert_right(store: FeatureStore, indices: list[int], keys: list[str] | None = None) -> None:
    rows = store.rows(keys or [key(i) for i in indices])
    assert list(rows) == ["layer.1", "pooled"]
    for name, rows_of in rows.items():
        assert torch.equal(rows_of, want(indices)[name])


@pytest.mark.parametrize("cache", ["auto", "ram", "disk", "off"])
@pytest.mark.parametrize("threads", [0, 2])
def test_rows_equal_a_fresh_encoding_bit_for_bit(tmp_path: Path, cache: str, threads: int) -> None:
    indices = [5, 3, 3, 8, 1, 0, 9, 5, 2]  # repeated items are encoded once
    with FeatureStore(SPEC, root=tmp_path, cache=cache) as store:
        keys = fill(store, indices, threads=threads)
        assert keys == [key(i) for i in indices]
        assert_right(store, indices, keys)
        assert torch.equal(store.rows(keys[:2], ["pooled"])["pooled"], want([5, 3])["pooled"])
        assert len(store) == 7
        assert store.on_disk == (cache in ("auto", "disk"))


def test_a_second_run_encodes_nothing_and_a_longer_one_only_the_rest(tmp_path: Path) -> None:
    seen: list[int] = []

    def counted(batch: Tensor) -> dict[str, Tensor]:
        seen.extend(batch[:, 0].int().tolist())
        return encode(batch)

    for indices, new in (([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), ([0, 1, 2, 3, 4], []), ([4, 7, 1, 6], [7, 6])):
        seen.clear()
        with FeatureStore(SPEC, root=tmp_path) as store:
            extract(counted, indices, store, load=source, key=key, batch_size=4)
            assert seen == new
            assert_right(store, indices)


def test_off_keeps_nothing_between_extractions() -> None:
    store = FeatureStore(SPEC, cache="off")
    fill(store, [1, 2])
    fill(store, [3])
    assert_right(store, [3])
    with pytest.raises(MissingFeatures):
        store.rows([key(1)])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rounded_rows_are_the_same_in_memory_and_on_disk(tmp_path: Path, dtype: str) -> None:
    stores = [FeatureStore(replace(SPEC, dtype=dtype), root=tmp_path, cache=cache) for cache in ("ram", "disk")]
    target = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for store in stores:
        rows = store.rows(fill(store, [1, 2, 3]))
        assert torch.equal(rows["layer.1"], want([1, 2, 3])["layer.1"].to(target))
        assert rows["pooled"].dtype == target


def test_integer_and_scalar_outputs_keep_their_type(tmp_path: Path) -> None:
    spec = replace(SPEC, outputs=("count", "flag", "score"), dtype="fp16")
    answer = {
        "count": torch.tensor([2**40, 7]),
        "flag": torch.tensor([[True, False], [False, True]]),
        "score": torch.tensor([0.5, 2]),
    }
    store = FeatureStore(spec, root=tmp_path, cache="disk")
    rows = store.rows(extract(lambda _: answer, [0, 1], store, load=source, key=key))
    assert rows["count"].tolist() == [2**40, 7]
    assert rows["flag"].tolist() == [[True, False], [False, True]]
    assert rows["score"].dtype == torch.float16
    assert rows["score"].tolist() == [0.5, 2.0]


def test_encoder_runs_frozen_and_in_the_precision_of_the_spec() -> None:
    class Net(nn.Linear):
        def forward(self, batch: Tensor) -> dict[str, Tensor]:
            assert not self.training
            assert not torch.is_grad_enabled()
            out = super().forward(batch)
            return {"layer.1": out, "pooled": out.float()}

    net = Net(4, 4).train()
    store = FeatureStore(replace(SPEC, precision="bf16"), cache="ram")
    rows = store.rows(extract(net, [1, 2], store, load=source, key=key))
    with torch.autocast("cpu", torch.bfloat16):
        direct = nn.functional.linear(torch.stack([source(1), source(2)]), net.weight, net.bias)
    assert direct.dtype == torch.bfloat16
    assert torch.equal(rows["pooled"], direct.float())


def test_any_difference_of_the_spec_is_another_store(tmp_path: Path) -> None:
    changes = [
        {"backbone": "b"},
        {"weights": "cd"},
        {"outputs": ("pooled",)},
        {"transform": "t"},
        {"image_size": (5, 4)},
    ]
    changes += [{"views": "flip"}, {"dtype": "fp16"}, {"precision": "bf16"}, {"version": 1}]
    assert len({SPEC.key, *(replace(SPEC, **change).key for change in changes)}) == 10
    with FeatureStore(SPEC, root=tmp_path) as store:
        fill(store, [1])
    assert len(FeatureStore(replace(SPEC, views="flip"), root=tmp_path)) == 0


def test_random_weights_never_reach_the_disk(tmp_path: Path) -> None:
    spec = replace(SPEC, weights="random")
    store = FeatureStore(spec, root=tmp_path)
    fill(store, [1])
    assert not store.on_disk
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="random weights"):
        FeatureStore(spec, root=tmp_path, cache="disk")


def test_keys_follow_the_source(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    by_stat, by_content = file_key(image), file_key(image, by="content")
    assert by_stat == file_key(image) == item_key(SimpleNamespace(path=image))
    times = image.stat()
    image.write_bytes(b"two")
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same mtime, other bytes
    assert file_key(image) != by_stat
    assert file_key(image, by="content") != by_content
    copy = tmp_path / "copy.png"
    copy.write_bytes(b"two")
    assert file_key(copy, by="content") == file_key(image, by="content")
    assert file_key(copy) != file_key(image)
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "0.png").write_bytes(b"0")
    folder = file_key(frames)
    (frames / "1.png").write_bytes(b"1")
    assert file_key(frames) != folder
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        file_key(tmp_path / "gone.png")
    pixels = np.arange(6, dtype=np.uint8)
    assert len({array_key(pixels), array_key(pixels.reshape(2, 3)), array_key(pixels.astype(np.int8))}) == 3
    assert item_key(SimpleNamespace(path=image, image=pixels)) == array_key(pixels)


def test_weld_runs_are_keyed_by_their_files_or_by_how_they_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = WeldRun("one", "good", "train", tmp_path / "one")
    (run.folder / "images").mkdir(parents=True)
    photo = run.folder / "images" / "0.jpg"
    photo.write_bytes(b"one")
    key_of_run, times = run_key(run), photo.stat()
    assert key_of_run == run_key(replace(run, class_name="spatter", split="test"))
    photo.write_bytes(b"two")
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))  # same path, size and mtime
    assert run_key(run) != key_of_run

    drawn = [run_key(run) for run in weld_demo_runs(train=3, good=0, per_defect=0)]
    assert drawn == [run_key(run) for run in weld_demo_runs(train=3, good=0, per_defect=0)]
    assert len(set(drawn)) == 3
    other = tmp_path / "demo.py"
    other.write_text(Path(demo.__file__).read_text() + "# another brush\n")
    monkeypatch.setattr(demo, "__file__", str(other))
    demo.drawing_version.cache_clear()
    assert not {run_key(run) for run in weld_demo_runs(train=3, good=0, per_defect=0)} & set(drawn)
    demo.drawing_version.cache_clear()


def test_changed_source_image_is_encoded_anew(tmp_path: Path) -> None:
    path = tmp_path / "image.bin"

    def run(value: float) -> Tensor:
        path.write_bytes(np.full(4, value, np.float32).tobytes())
        items = [SimpleNamespace(path=path)]
        with FeatureStore(SPEC, root=tmp_path / "cache") as store:
            keys = extract(encode, items, store, load=lambda item: torch.from_numpy(np.fromfile(item.path, np.float32)))
            return store.rows(keys)["pooled"][0, 0] * 3

    assert [float(run(v)) for v in (3.0, 6.0, 3.0)] == [3.0, 6.0, 3.0]


def damage(store: FeatureStore, at: int) -> None:
    with (store.folder / "00000.rows").open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\x99\x99")


@pytest.mark.parametrize("loss", ["rows", "index"])
def test_a_row_that_gets_damaged_between_two_reads_is_encoded_again(tmp_path: Path, loss: str) -> None:
    said: list[str] = []
    store = FeatureStore(SPEC, root=tmp_path, cache="disk", notice=said.append)
    fill(store, [1, 2, 3])
    assert_right(store, [1, 2, 3])
    damage(store, 64 + 5)  # the second row of 16 floats
    if loss == "index":
        with pytest.raises(MissingFeatures):
            FeatureStore(SPEC, root=tmp_path).rows([key(2)])  # another process strikes it out and cannot mend it
    assert_right(store, [3, 2, 1, 2])
    assert len(said) == 1
    assert f"{key(2)[:16]} was damaged" in said[0]
    assert_right(FeatureStore(SPEC, root=tmp_path), [1, 2, 3])  # mended for others too
    with pytest.raises(MissingFeatures):
        store.rows([key(4)])  # never extracted
    with FeatureStore(SPEC, root=tmp_path) as other:
        fill(other, [4])
        assert len(list(store.folder.glob("*.rows"))) == 1  # the shard was let go of


def test_a_damaged_row_of_a_source_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.bin"
    path.write_bytes(bytes(16))
    store = FeatureStore(SPEC, root=tmp_path / "cache")
    keys = extract(encode, [path], store, load=lambda one: torch.from_numpy(np.fromfile(one, np.float32)), key=file_key)
    damage(store, 3)
    path.write_bytes(bytes(8) + b"\x01" * 8)
    with pytest.raises(UserError, match=r"image\.bin: changed while"):
        store.rows(keys)


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(SPEC, root=tmp_path)
    fill(store, [1])
    with pytest.raises(UserError, match="fixed image size"):
        store.put([key(2)], {"layer.1": torch.zeros(1, 2, 4), "pooled": torch.zeros(1, 4)})
    with pytest.raises(UserError, match=r"no stored feature 'layer\.9'"):
        store.rows([key(1)], ["layer.9"])
    with pytest.raises(UserError, match="empty"):
        store.rows([])


def test_ranks_share_the_work_and_nothing_is_left_over(tmp_path: Path) -> None:
    indices, encoded = list(range(11)), 0
    for rank in (1, 0, 2):  # a rank that starts late sees the others' rows; its own share must not change by that
        with FeatureStore(SPEC, root=tmp_path) as store:
            fill(store, indices, share=(rank, 3))
            encoded += len(indices[rank::3])
            assert len(store) == encoded
            assert all(key(i) in store for i in indices[rank::3])
    assert_right(FeatureStore(SPEC, root=tmp_path), indices)


def test_two_open_stores_see_each_others_rows(tmp_path: Path) -> None:
    one, other = FeatureStore(SPEC, root=tmp_path), FeatureStore(SPEC, root=tmp_path)
    one.put([key(1)], {k: v for k, v in want([1]).items() if k != "unused"})
    other.put([key(2)], {k: v for k, v in want([2]).items() if k != "unused"})
    assert one.missing([key(1), key(2)]) == other.missing([key(1), key(2)]) == []
    assert_right(one, [1, 2])
    assert_right(other, [2, 1])
    assert len(list(one.folder.glob("*.rows"))) == 2  # each writer its own shard
    one.close()
    other.close()
    with FeatureStore(SPEC, root=tmp_path) as third:
        fill(third, [1, 2, 3])
        assert len(list(third.folder.glob("*.rows"))) == 2  # a free shard is continued


def test_shards_roll_over(tmp_path: Path) -> None:
    with FeatureStore(SPEC, root=tmp_path) as store:
        assert store._disk is not None
        store._disk.shard_bytes = 3 * 64  # a row is 16 floats
        fill(store, list(range(12)))
        assert len(list(store.folder.glob("*.rows"))) == 3  # batches of 4 rows, each above the limit
        assert_right(store, list(range(12)))


def test_rows_are_read_alike_where_there_is_no_positioned_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(FeatureStore(SPEC, root=tmp_path), [0, 1, 2, 3, 4])
    monkeypatch.delattr("os.preadv")  # as on Windows
    assert_right(FeatureStore(SPEC, root=tmp_path), [3, 0, 4, 4, 1, 2])


def test_info_and_clear(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("keep")
    with FeatureStore(SPEC, root=tmp_path) as store:
        fill(store, [1, 2, 3])
    (info,) = store_info(tmp_path)
    assert (info.backbone, info.rows, info.outputs) == ("tiny/net", 3, ("layer.1", "pooled"))
    assert info.row == "layer.1 [3, 4] float32, pooled [4] float32"
    assert info.size == sum(f.stat().st_size for f in store.folder.iterdir())
    assert str(info).endswith(f"3 rows of {info.row}, {info.size / 2**20:.1f} MiB")
    assert clear_store(tmp_path) == info.size
    assert store_info(tmp_path) == []
    assert (tmp_path / "photos" / "mine.txt").exists()


def test_large_fills_are_announced_and_impossible_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    store = FeatureStore(SPEC, root=tmp_path, cache="disk", notice=said.append)
    fill(store, [1])
    store.plan(3)
    assert said == []
    monkeypatch.setattr("anomaly_lib.features.store.LARGE_FILL", 64 * 100)
    store.plan(100)
    assert said[0].startswith("encoding 100 samples: 0 KiB each, 0.0 MiB in")
    with pytest.raises(UserError, match="cache_dir= or cache=ram"):
        store.plan(1 << 50)
    relaxed = FeatureStore(SPEC, root=tmp_path, cache="auto", notice=said.append)
    with pytest.raises(UserError, match="give cache=disk"):
        relaxed.plan(1 << 50)  # too much for the disk, then for the memory


def test_wrong_options_are_named() -> None:
    with pytest.raises(UserError, match="cache=tape: choose from auto, ram, disk, off"):
        FeatureStore(SPEC, cache="tape")
    with pytest.raises(UserError, match="row dtype 'int8'"):
        replace(SPEC, dtype="int8")
