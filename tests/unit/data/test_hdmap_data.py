import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from anomaly_lib.errors import UserError
from anomaly_lib.metrics import auroc
from anomaly_lib.systems.detectors.hdmap.convert import CLASS_SENSOR_OLD, DOMAIN_MAX, Version, convert, mat_paths
from anomaly_lib.systems.detectors.hdmap.demo_maps import LOOKS, synthetic_maps, write_hdmap_demo
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS
from anomaly_lib.systems.detectors.hdmap.reader import (
    MultiDomainHDMAPDataModule,
    decode,
    fit_to,
    load_split,
    read_hdmap,
    save_map,
    stratified_halves,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_hdmap_demo(tmp_path_factory.mktemp("demo"), train=6, test=4)


@pytest.mark.parametrize("domain", DOMAINS)
def test_synthetic_maps_have_the_published_statistics(domain):
    look = LOOKS[domain]
    train, good = synthetic_maps(domain, 400), synthetic_maps(domain, 400, seed=1)
    fault = synthetic_maps(domain, 400, fault=True, seed=2)
    assert train.shape == (400, 31, 95)
    assert train.mean() == pytest.approx(look.mean, rel=0.05)
    assert train.std() == pytest.approx(look.std, rel=0.4)
    assert train.min() > 0
    cold, warm = good[:200].mean(), good[200:].mean()
    assert warm / cold == pytest.approx(1.4, rel=0.1)
    assert warm > fault[:200].mean()  # a warm healthy map is brighter than a cold faulty one
    assert (fault.mean() < good.mean()) == (domain in ("domain_B", "domain_D"))
    labels = torch.tensor([0] * 400 + [1] * 400)
    both = np.concatenate([good, fault])
    for name, statistic in {
        "mean": both.mean((1, 2)), "max": both.max((1, 2)), "deviation": both.std((1, 2)), "minimum": both.min((1, 2)),
        "95 %": np.quantile(both, 0.95, (1, 2)),
    }.items():  # fmt: skip
        value = auroc(torch.from_numpy(statistic), labels)
        assert 0.3 < value < 0.75, f"{name} alone separates {domain}: AUROC {value:.3f}"
    rows = both.mean(2) / both.mean((1, 2))[:, None] - (train.mean(2) / train.mean((1, 2))[:, None]).mean(0)
    assert auroc(torch.from_numpy(rows.max(1)), labels) > 0.85  # the fault is there: one tooth row stands out


def test_synthetic_maps_repeat_and_domains_differ():
    assert np.array_equal(synthetic_maps("domain_A", 3, seed=5), synthetic_maps("domain_A", 3, seed=5))
    assert not np.array_equal(synthetic_maps("domain_A", 3, seed=5), synthetic_maps("domain_A", 3, seed=6))
    pattern = {d: synthetic_maps(d, 200).mean(0).ravel() for d in DOMAINS}
    assert abs(np.corrcoef(pattern["domain_A"], pattern["domain_B"])[0, 1]) < 0.6


@pytest.mark.parametrize("kind", ["tiff", "16bit", "8bit"])
def test_files_read_back(tmp_path, kind):
    values = np.random.default_rng(0).random((31, 95)).astype(np.float32) * (2 if kind == "tiff" else 1)
    save_map(tmp_path / "m", values, kind)
    path = next(tmp_path.iterdir())
    np.testing.assert_allclose(decode(path), values, atol={"tiff": 0, "16bit": 1e-5, "8bit": 2.1e-3}[kind])


def test_reader_and_tensor(root):
    items = read_hdmap(root, domains=["domain_B"])
    assert [(i.split, i.defect, i.label) for i in items] == [("train", "good", 0)] * 6 + [("test", "good", 0)] * 4 + [
        ("test", "fault", 1)
    ] * 4
    split = load_split(root, "domain_B", "test")
    assert split.images.shape == (8, 1, 31, 95)
    assert split.labels.tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(split.images[5, 0].numpy(), np.asarray(Image.open(split.paths[5])))
    small = load_split(root, "domain_B", "train", size=(62, 190), resize_method="resize")
    assert torch.equal(small.images[:, :, ::2, ::2], load_split(root, "domain_B", "train").images)


def test_reader_says_what_is_wrong(root, tmp_path):
    with pytest.raises(UserError, match="unknown HDMAP domain 'domain_E'"):
        read_hdmap(root, domains=["domain_E"])
    with pytest.raises(UserError, match="no domain_"):
        read_hdmap(tmp_path, domains=["domain_A"])
    (tmp_path / "domain_A" / "train" / "good").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no \.png"):
        read_hdmap(tmp_path, domains=["domain_A"])


def test_resize_methods():
    maps = torch.rand(3, 1, 31, 95)
    padded = fit_to(maps, (40, 100), "black_padding")
    assert torch.equal(padded[:, :, 4:35, 2:97], maps)  # odd remainder: bottom and right
    assert padded.sum() == pytest.approx(maps.sum().item(), rel=1e-6)
    noisy = fit_to(maps, (40, 100), "noise_padding")
    assert torch.equal(noisy[:, :, 4:35, 2:97], maps)
    border = noisy[:, :, :4]
    assert border.mean().item() == pytest.approx(maps.mean().item(), abs=0.01)
    assert border.std().item() == pytest.approx(0.1 * maps.std().item(), rel=0.2)
    aspect = fit_to(maps, (190, 190), "resize_aspect_padding")
    assert (aspect[:, :, :64] == 0).all()
    assert (aspect[:, :, 64:126] > 0).all()
    assert torch.equal(fit_to(maps, None), maps)
    with pytest.raises(UserError, match="cannot be padded"):
        fit_to(maps, (20, 100), "black_padding")
    with pytest.raises(UserError, match="resize_method"):
        fit_to(maps, (20, 100), "cubic")


def test_data_module_semantics(root):
    module = MultiDomainHDMAPDataModule(root, source_domain="domain_B", eval_batch_size=3, train_batch_size=4)
    assert module.target_domains == ["domain_A", "domain_C", "domain_D"]
    assert [d.domain for d in module.test_data] == module.target_domains
    assert len(module.test_dataloader()) == 3
    assert set(module.get_all_target_test_dataloaders()) == set(module.target_domains)
    images = torch.cat([x for x, _ in module.get_target_test_dataloader("domain_C")])
    assert torch.equal(images, load_split(root, "domain_C", "test").images)
    assert module.val_data is module.source_data  # the published protocol selects and reports on the same maps
    first, again = (torch.cat(list(module.train_batches(0))) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat(list(module.train_batches(1))))
    with pytest.raises(UserError, match="must not be among"):
        MultiDomainHDMAPDataModule(root, source_domain="domain_A", target_domains=["domain_A"])
    with pytest.raises(UserError, match="validation_strategy"):
        MultiDomainHDMAPDataModule(root, validation_strategy="target_test")
    with pytest.raises(UserError, match="not one of the target"):
        module.get_target_test_dataloader("domain_B")


def test_held_out_validation_does_not_leak(root):
    module = MultiDomainHDMAPDataModule(root, target_domains="domain_D", validation_strategy="held_out")
    assert not set(module.val_data.paths) & set(module.source_data.paths)
    assert len(module.val_data) + len(module.source_data) == 8
    for data in (module.val_data, module.source_data):
        assert data.labels.float().mean() == 0.5
    first, second = stratified_halves(torch.tensor([0, 0, 0, 1, 1]), fraction=0.5, seed=0)
    assert sorted(first.tolist() + second.tolist()) == [0, 1, 2, 3, 4]


def write_mats(root, count=5):
    generator = np.random.default_rng(3)
    raw = {}
    for domain, (condition, sensor) in CLASS_SENSOR_OLD.items():
        for key, path in mat_paths(root, condition, sensor).items():
            data = generator.random((31, 95, 1, count)).astype(np.float32) * DOMAIN_MAX[domain]
            path.parent.mkdir(parents=True, exist_ok=True)
            savemat(path, {"Xdata": data})
            raw[domain, key] = data[:, :, 0].transpose(2, 0, 1)
    return raw


def test_convert_both_generations(tmp_path):
    raw = write_mats(tmp_path / "mat")
    folder = convert(tmp_path / "mat", tmp_path, version="3_8bit_resize_pad_64x96")
    assert folder == tmp_path / "HDMAP" / "3_8bit_resize_pad_64x96"
    split = load_split(folder, "domain_A", "test")
    assert split.images.shape == (6, 1, 64, 96)
    assert (split.images[:, :, :16] == 0).all()
    assert split.images.max() == pytest.approx(1, abs=0.05)

    folder = convert(tmp_path / "mat", tmp_path, version="4_tiff_minmax", domain_map=CLASS_SENSOR_OLD, test_count=2)
    split = load_split(folder, "domain_C", "test")
    want = np.concatenate([raw["domain_C", ("test", g)][:2] for g in ("good", "fault")]) / DOMAIN_MAX["domain_C"]
    np.testing.assert_allclose(split.images[:, 0].numpy(), want, rtol=1e-6)
    train = load_split(folder, "domain_C", "train").images[:, 0].numpy()
    source = raw["domain_C", ("train", "good")] / DOMAIN_MAX["domain_C"]
    assert len(train) == 4
    assert all(np.abs(source - image).max((1, 2)).min() < 1e-6 for image in train)

    plain = convert(tmp_path / "mat", tmp_path, version="2_16bit_original")
    values = raw["domain_B", ("test", "good")][1]
    got = decode(plain / "domain_B" / "test" / "good" / "000001.png")
    np.testing.assert_allclose(got, (values - values.min()) / np.ptp(values), atol=1e-5)


def test_convert_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="version="):
        Version.parse("many_8bit")
    with pytest.raises(UserError, match="version="):
        Version.parse("10_8bit_resize")
    with pytest.raises(UserError, match=r"no such \.mat"):
        convert(tmp_path, tmp_path, version="3_tiff_minmax")
    write_mats(tmp_path)
    condition, sensor = CLASS_SENSOR_OLD["domain_A"]
    savemat(mat_paths(tmp_path, condition, sensor)["train", "good"], {"Other": np.zeros(3)})
    with pytest.raises(UserError, match="no variable Xdata"):
        convert(tmp_path, tmp_path, version="3_8bit_original")
