"""Analysis of representations against hand computation."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.analysis.diversity import cosine_to, cosines, effective_number, noise_like, relative_size
from orchestrator.analysis.spectra import radial_power
from orchestrator.analysis.variance import variance_shares
from orchestrator.studies.base import csv_text


def n_eff(vectors: np.ndarray, kept: np.ndarray | None = None) -> float:
    return float(effective_number(cosines(vectors[None]), None if kept is None else kept[None])[0])


def test_equal_vectors_count_as_one_and_orthogonal_ones_each() -> None:
    assert n_eff(np.tile([3.0, -1.0, 2.0], (5, 1))) == pytest.approx(1)
    assert n_eff(np.diag([1.0, 2.0, 5.0, 0.1])) == pytest.approx(4)


def test_opposite_vectors_count_as_one() -> None:
    assert n_eff(np.array([[1.0, 2.0], [-2.0, -4.0]])) == pytest.approx(1)


def test_two_vectors_at_an_angle() -> None:
    # Cosine 1/2: 4 / (1 + 1 + 1/4 + 1/4).
    assert n_eff(np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]])) == pytest.approx(1.6)


def test_only_kept_vectors_count() -> None:
    vectors = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert n_eff(vectors, np.array([True, True, False, False])) == pytest.approx(1)
    assert n_eff(vectors, np.array([True, False, True, True])) == pytest.approx(3)
    assert np.isnan(n_eff(vectors, np.zeros(4, dtype=bool)))


def test_a_zero_vector_adds_nothing() -> None:
    assert n_eff(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) == pytest.approx(2)
    assert np.isnan(n_eff(np.zeros((3, 2))))


def test_cosine_and_size_by_hand() -> None:
    own = np.array([[3.0, 4.0]])
    values = np.array([[[3.0, 4.0], [4.0, -3.0], [-3.0, -4.0]]])
    assert cosine_to(values, own)[0] == pytest.approx([1, 0, -1])
    assert relative_size(values, own)[0] == pytest.approx([0, np.sqrt(2), 2])


def test_noise_has_the_size_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    own = rng.standard_normal((3, 400)).astype(np.float32)
    own -= own.mean(axis=1, keepdims=True)
    found = (own[:, None] + rng.standard_normal((3, 5, 400))).astype(np.float32)
    found -= found.mean(axis=2, keepdims=True)
    noise = noise_like(found, own, rng)
    assert np.linalg.norm(noise, axis=2) == pytest.approx(np.linalg.norm(found, axis=2), rel=1e-5)
    assert cosine_to(noise, own) == pytest.approx(cosine_to(found, own), abs=1e-5)
    assert relative_size(noise, own) == pytest.approx(relative_size(found, own), rel=1e-5)
    assert np.abs(noise.mean(axis=2)).max() < 1e-5
    # What is not along the own representation is as good as orthogonal between draws.
    assert effective_number(cosines(noise - own[:, None])).min() > 2


def test_variance_by_hand() -> None:
    # Two classes of two images, two searches each, one value: class means 1 and 5, images at -1 and +1, searches at -0.5 and +0.5.
    values = np.array([[-0.5, 0.5], [1.5, 2.5], [3.5, 4.5], [5.5, 6.5]])[:, :, None]
    shares = variance_shares(values, np.array([0, 0, 1, 1]))
    # Sums of squares: 8 * 0.25 = 2 of 4 degrees, 4 * 2 = 8 of 2, 8 * 4 = 32 of 1; mean squares 0.5, 4, 32.
    search, image, of_class = 0.5, (4 - 0.5) / 2, (32 - 4) / 4
    total = search + image + of_class
    assert (shares.by_class, shares.by_image, shares.by_search) == pytest.approx((of_class / total, image / total, search / total))


@pytest.mark.parametrize("level", ["by_class", "by_image", "by_search"])
def test_variance_of_one_level_alone(level: str) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([3, 7, 8], [20, 30, 10])
    effects = {
        "by_class": rng.standard_normal((9, 1, 50))[labels],
        "by_image": rng.standard_normal((60, 1, 50)),
        "by_search": rng.standard_normal((60, 4, 50)),
    }
    shares = variance_shares(np.broadcast_to(effects[level], (60, 4, 50)), labels)
    assert getattr(shares, level) > 0.97
    assert shares.by_class + shares.by_image + shares.by_search == pytest.approx(1)


def test_without_variance_there_are_no_shares() -> None:
    assert vars(variance_shares(np.ones((4, 2, 3)), np.array([0, 0, 1, 1]))) == {"by_class": 0, "by_image": 0, "by_search": 0}


def test_one_search_has_no_share_of_its_own() -> None:
    shares = variance_shares(np.array([[0.0], [2.0], [4.0], [6.0]])[:, :, None], np.array([0, 0, 1, 1]))
    # Mean squares: images (1 + 1 + 1 + 1) / 2 = 2, classes 4 * 4 / 1 = 16.
    assert (shares.by_class, shares.by_image, shares.by_search) == pytest.approx((7 / 9, 2 / 9, 0))


def test_a_wave_has_its_power_at_its_wave_number() -> None:
    wave = np.cos(2 * np.pi * 2 * np.arange(8) / 8)[None].repeat(8, axis=0)
    power = radial_power(wave[None])
    modes = np.bincount(np.rint(np.hypot(*np.meshgrid(np.fft.fftfreq(8, 1 / 8), np.fft.fftfreq(8, 1 / 8)))).astype(int).ravel())
    assert len(power) == 5
    # A cosine has mean square 1/2, all of it in the two modes at +-2.
    assert power * modes[:5] == pytest.approx([0, 0, 0.5, 0, 0], abs=1e-12)


def test_a_constant_map_has_its_square_at_zero() -> None:
    assert radial_power(np.full((2, 3, 6, 6), 3.0)) == pytest.approx([9, 0, 0, 0], abs=1e-12)


def test_tables_leave_out_what_was_not_measured() -> None:
    assert csv_text([{"a": 1, "b": float("nan")}, {"a": "x", "b": 1 / 3}]) == "a,b\n1,\nx,0.333333\n"
