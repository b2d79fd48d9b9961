"""Score fusion by name and calibration on normal scores: values worked out by hand."""

import numpy as np
import pytest
import torch

from anomaly_lib import fusion
from anomaly_lib.errors import UserError

A = torch.tensor([0.2, 0.5, 0.9])
B = torch.tensor([0.6, 0.5, 0.1])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("harmonic", [0.15, 0.25, 0.09]),
        ("harmonic-mean", [0.3, 0.5, 0.18]),
        ("max", [0.6, 0.5, 0.9]),
        ("mean", [0.4, 0.5, 0.5]),
        ("min", [0.2, 0.5, 0.1]),
        ("product", [0.12, 0.25, 0.09]),
        ("noisy-or", [0.68, 0.75, 0.91]),
        ("weighted", [0.4, 0.5, 0.5]),
    ],
)
def test_fuse_by_name(mode: str, expected: list[float]) -> None:
    torch.testing.assert_close(fusion.fuse(A, B, mode=mode), torch.tensor(expected))


def test_every_registered_mode_runs_with_three_branches() -> None:
    references = [torch.rand(9), torch.rand(9), torch.rand(9)]
    for mode in fusion.FUSIONS:
        needed = references if mode in fusion.REFERENCE_MODES else None
        out = fusion.fuse(A, B, A, mode=mode, references=needed)
        assert out.shape == A.shape
        assert torch.isfinite(out).all()
        assert out.std() > 0


def test_harmonic_of_three_and_with_eps() -> None:
    torch.testing.assert_close(fusion.harmonic(A, B, A), 1 / (1 / A + 1 / B + 1 / A))
    torch.testing.assert_close(fusion.harmonic(A, B, eps=0.1), 1 / (1 / (A + 0.1) + 1 / (B + 0.1)))


def test_harmonic_with_zero_negative_and_huge_branches() -> None:
    a = torch.tensor([0.0, -1e-7, 0.0, 3e38], requires_grad=True)
    b = torch.tensor([0.5, 0.5, 0.0, 3e38])
    out = fusion.harmonic(a, b)
    torch.testing.assert_close(out[:3], torch.zeros(3))
    out[:3].sum().backward()
    assert torch.isfinite(a.grad).all()


def test_weights() -> None:
    torch.testing.assert_close(fusion.fuse(A, B, mode="weighted", weights=(3, 1)), (3 * A + B) / 4)
    with pytest.raises(UserError, match="2 numbers"):
        fusion.fuse(A, B, mode="weighted", weights=(1, 2, 3))
    with pytest.raises(UserError, match="belong to fusion mode 'weighted'"):
        fusion.fuse(A, B, mode="max", weights=(1, 2))


def test_unknown_mode_lists_the_names() -> None:
    with pytest.raises(UserError, match="harmonic-mean, max, mean"):
        fusion.fuse(A, B, mode="maximal")


def test_shapes_must_agree() -> None:
    with pytest.raises(UserError, match="one shape"):
        fusion.fuse(A, B[:2])


def test_numbers_and_arrays_are_welcome() -> None:
    assert float(fusion.fuse(0.5, 0.5)) == pytest.approx(0.25)
    torch.testing.assert_close(fusion.fuse(np.array([1.0]), [3.0], mode="mean").double(), torch.tensor([2.0]).double())


def test_z_score_uses_the_reference_not_the_test_scores() -> None:
    references = [torch.tensor([0.0, 2.0]), torch.tensor([10.0, 14.0])]  # mean 1 std 1; mean 12 std 2
    out = fusion.fuse(torch.tensor([3.0]), torch.tensor([8.0]), mode="z-score", references=references)
    torch.testing.assert_close(out, torch.tensor([2.0 - 2.0]))
    with pytest.raises(UserError, match="references="):
        fusion.fuse(A, B, mode="z-score")


def test_quantile_calibration_places_scores_between_the_reference_points() -> None:
    place = fusion.quantile_calibration(torch.tensor([3.0, 1.0, 2.0]))
    torch.testing.assert_close(place(torch.tensor([1.0, 1.5, 2.0, 3.0])), torch.tensor([0.25, 0.375, 0.5, 0.75]))
    beyond = place(torch.tensor([3.5, 5.0, 0.5, -2.0]))
    assert 0.75 < beyond[0] < beyond[1] < 1
    assert 0.25 > beyond[2] > beyond[3] > 0


def test_z_score_probability_is_the_normal_distribution() -> None:
    place = fusion.calibrate(torch.tensor([0.0, 2.0]), "z-score")
    torch.testing.assert_close(place(torch.tensor([1.0, 2.0])), torch.tensor([0.5, 0.8413447]))


def test_calibration_of_constant_and_bad_scores() -> None:
    for method in fusion.CALIBRATIONS:
        place = fusion.calibrate(torch.full((4,), 0.3), method)
        low, middle, high = place(torch.tensor([0.1, 0.3, 0.9]))
        assert low < middle < high
        with pytest.raises(UserError, match="finite"):
            fusion.calibrate(torch.tensor([1.0, float("nan")]), method)
    with pytest.raises(UserError, match="z-score, quantile"):
        fusion.calibrate(torch.rand(3), "minmax")
