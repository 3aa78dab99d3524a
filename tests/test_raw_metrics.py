"""Rows and metrics of raw values against closed forms, invariances and the libraries that others measure with."""

import numpy as np
import pytest

from justimage.evaluation.pairs import psnr, ssim
from justimage.evaluation.raw import (
    crps,
    lag_correlation,
    lag_products,
    quantiles,
    radial_bins,
    radial_spectrum,
    rank_histogram,
    spectrum_distance,
    value_sample,
    wasserstein1,
)

SHAPES = [(31,), (64,), (16, 16), (5, 64), (12, 7), (6, 9, 4), (1, 8)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- spectrum


@pytest.mark.parametrize("shape", SHAPES)
def test_spectra_sum_up_to_the_mean_square(shape):
    """Parseval, bin by bin; each bin holds a frequency, and the first one is the square of the mean."""
    x = rng().normal(size=(3, 2, *shape)).astype(np.float32) + 1
    spectrum = radial_spectrum(x)
    counts = np.bincount(radial_bins(shape).ravel())
    assert counts.min() > 0
    assert spectrum.shape == (3, 2, len(counts))
    np.testing.assert_allclose(spectrum @ counts, (x.astype(np.float64) ** 2).reshape(3, 2, -1).mean(-1))
    if counts[0] == 1:
        np.testing.assert_allclose(spectrum[..., 0], x.astype(np.float64).reshape(3, 2, -1).mean(-1) ** 2)


def test_no_bin_is_empty_on_any_small_grid():
    for shape in np.ndindex(24, 24):
        assert np.bincount(radial_bins([1 + length for length in shape]).ravel()).min() > 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_wave_lies_in_the_bin_of_its_wavelength_along_any_axis(axis):
    """A period of 4 samples is 8 cycles along the longest axis, 32, whichever axis it runs along."""
    shape = (16, 8, 32)
    along = np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(3)])
    wave = np.broadcast_to(np.cos(2 * np.pi * along / 4), shape)
    spectrum = radial_spectrum(wave[None, None])[0, 0]
    assert spectrum.argmax() == 8
    assert spectrum[8] * np.bincount(radial_bins(shape).ravel())[8] == pytest.approx(0.5)


def test_a_row_is_a_function_of_its_sample_alone():
    x = rng().normal(size=(5, 2, 9, 6)).astype(np.float32)
    for row in (radial_spectrum, lag_products, lambda x: value_sample(x, 7, range(40, 40 + len(x)))):
        np.testing.assert_array_equal(row(x)[:1], row(x[:1]))
    np.testing.assert_array_equal(value_sample(x, 7, [3, 1, 4, 1, 5])[3:4], value_sample(x[3:4], 7, [1]))


def test_spectrum_distance_is_a_ratio_in_decibels():
    rows = radial_spectrum(rng().normal(size=(40, 2, 12, 12)))
    assert spectrum_distance(rows, rows) == 0
    assert spectrum_distance(rows, 100 * rows) == pytest.approx(20)
    shifted = rows.copy()
    shifted[..., 0] += 1e3  # the mean value is no matter of scale
    assert spectrum_distance(rows, shifted) == 0
    halves = spectrum_distance(rows[:20], rows[20:])
    assert halves < 2
    with pytest.raises(ValueError, match="one size"):
        spectrum_distance(rows, rows[..., 1:])


def test_spectrum_distance_of_constants_and_of_what_only_one_side_has():
    constant = radial_spectrum(np.full((4, 1, 8, 8), 280.1, np.float32))
    assert spectrum_distance(constant, radial_spectrum(np.full((4, 1, 8, 8), 280.2, np.float32))) == 0
    assert spectrum_distance(np.ones((2, 1, 1)), np.ones((2, 1, 1))) == 0
    lost = spectrum_distance(constant, radial_spectrum(rng().normal(size=(4, 1, 8, 8)) + 280))
    assert 40 < lost < 1000


# ---- values


def test_value_samples_are_values_of_their_sample_at_one_place_in_all_channels():
    x = np.arange(3 * 50).reshape(3, 1, 5, 10) + np.array([0, 1000]).reshape(1, 2, 1, 1)
    some = value_sample(x, 20, [7, 8, 9])
    assert some.shape == (3, 2, 20)
    for k in range(3):
        assert np.isin(some[k, 0], x[k, 0]).all()
    np.testing.assert_array_equal(some[:, 1], some[:, 0] + 1000)
    assert len({tuple(row) for row in some[:, 0] % 50}) == 3
    np.testing.assert_array_equal(value_sample(x, 50, range(3)), x.reshape(3, 2, 50))
    places = value_sample(np.tile(np.arange(50.0), (400, 1, 1)), 20, range(400)).astype(int)
    assert np.bincount(places.ravel(), minlength=50).min() > 100  # 160 expected at each place


def test_wasserstein_closed_forms():
    """A shift by s costs s, a scaling of a normal by c costs |c - 1| sqrt(2 / pi)."""
    a = rng().normal(size=(500, 2, 40))
    moved = a * np.array([1, 1.5]).reshape(1, 2, 1) + np.array([3, 0]).reshape(1, 2, 1)
    np.testing.assert_allclose(wasserstein1(a, moved), [3, 0.5 * np.sqrt(2 / np.pi)], rtol=0.02)
    np.testing.assert_array_equal(wasserstein1(a, a[rng(1).permutation(500)]), [0, 0])
    with pytest.raises(ValueError, match="2 channels against 1"):
        wasserstein1(a, a[:, :1])


def test_wasserstein_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = rng().normal(size=(30, 3, 7)), rng(1).standard_t(3, size=(41, 3, 5)).round(1)
    oracle = [stats.wasserstein_distance(a[:, c].ravel(), b[:, c].ravel()) for c in range(3)]
    np.testing.assert_allclose(wasserstein1(a, b), oracle, rtol=1e-10)


def test_quantiles_are_those_of_each_channel():
    values = np.stack([np.arange(101.0), 10 * np.arange(101.0)])[None]
    np.testing.assert_allclose(quantiles(values, (0, 0.1, 0.5, 1)), [[0, 10, 50, 100], [0, 100, 500, 1000]])
    assert quantiles(values).shape == (2, 5)


# ---- correlation


def test_lag_correlation_of_a_moving_average():
    """Of white noise averaged over 4 places along each of both axes: 1 - lag / 4, and 0 from 4 on."""
    x = rng().normal(size=(60, 1, 67, 67))
    x = np.lib.stride_tricks.sliding_window_view(x, (4, 4), (2, 3)).mean((-1, -2))
    np.testing.assert_allclose(lag_correlation(lag_products(x)), [[0.75, 0.5, 0, 0]], atol=0.03)


@pytest.mark.parametrize("shape", [(40,), (12, 20), (6, 5, 9)])
def test_lag_correlation_is_about_the_mean_of_all_samples(shape):
    """By hand over all pairs of all samples, axis by axis; float32 rows and a large offset change nothing."""
    x = rng().normal(size=(9, 2, *shape)) + rng(1).normal(size=(9, 2, *([1] * len(shape)))) + 280
    off = x - x.mean((0, *range(2, x.ndim)), keepdims=True)
    expected = []
    for lag in (1, 2, 4, 8):
        axes = [axis for axis in range(2, x.ndim) if x.shape[axis] > lag]
        if not axes:
            continue
        pairs = [np.moveaxis(off, axis, 2) for axis in axes]
        products = [(y[:, :, lag:] * y[:, :, :-lag]).mean((0, *range(2, x.ndim))) for y in pairs]
        expected.append(np.mean(products, 0) / (off**2).mean((0, *range(2, x.ndim))))
    rows = lag_products(x)
    assert rows.shape == (9, 2, len(expected), 4)
    np.testing.assert_allclose(lag_correlation(rows), np.transpose(expected), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(lag_correlation(rows.astype(np.float32)), np.transpose(expected), atol=1e-4)


def test_lags_longer_than_all_axes_are_left_out_and_constants_have_no_correlation():
    assert lag_products(np.zeros((3, 2, 4, 6))).shape == (3, 2, 3, 4)
    assert lag_products(np.zeros((3, 2, 1))).shape == (3, 2, 0, 4)
    assert lag_correlation(lag_products(np.zeros((3, 2, 1)))).shape == (2, 0)
    assert np.isnan(lag_correlation(lag_products(np.full((3, 1, 6, 6), 0.1)))).all()


# ---- ensembles


def test_crps_of_two_members_by_hand():
    """Members 1 and 4, truth 2: (1 + 2) / 2 less |1 - 4| / 2 makes 0, and 1/4 of it less where pairs are not fair."""
    assert crps(np.array([[1.0], [4.0]]), np.array([2.0])) == pytest.approx(0)
    assert crps(np.array([[1.0], [4.0], [4.0]]), np.array([0.0])) == pytest.approx(3 - 1)
    with pytest.raises(ValueError, match="1 member"):
        crps(np.zeros((1, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="expected"):
        crps(np.zeros((4, 3)), np.zeros(2))


def test_crps_of_normal_ensembles_is_the_closed_form_for_any_number_of_members():
    """Truth and members N(0, 1): 1 / sqrt(pi) in the mean (Gneiting and Raftery 2007, Eq. 5), also for 2 members."""
    truth = rng().normal(size=(200, 400))
    for members in (2, 3, 10):
        ensemble = rng(members).normal(size=(members, 200, 400))
        assert crps(ensemble, truth) == pytest.approx(1 / np.sqrt(np.pi), abs=0.01)
        for off in (ensemble + 0.3, ensemble * 0.7, ensemble * 1.4):
            assert crps(off, truth) > crps(ensemble, truth)


def test_rank_histograms():
    """Flat for the truth's own distribution, also with ties; U-shaped with too little spread."""
    truth, ensemble = rng().normal(size=(9000,)), rng(1).normal(size=(8, 9000))
    counts = rank_histogram(ensemble, truth)
    assert counts.sum() == 9000
    assert (abs(counts - 1000) < 150).all()
    assert (abs(rank_histogram(ensemble.round(), truth.round()) - 1000) < 150).all()
    narrow = rank_histogram(0.4 * ensemble, truth)
    assert min(narrow[0], narrow[-1]) > 2 * narrow[1:-1].max()
    np.testing.assert_array_equal(rank_histogram(np.array([[1.0], [2], [3]]), np.array([2.5])), [0, 0, 1, 0])
    ties = np.zeros((3, 50))
    np.testing.assert_array_equal(rank_histogram(ties, ties[0], seed=1), rank_histogram(ties, ties[0], seed=1))


# ---- pairs


def test_psnr_closed_form():
    a = rng().uniform(0, 200, size=(3, 2, 9, 9))
    np.testing.assert_allclose(psnr(a, a + 25.5, 255), [20, 20, 20])
    assert np.isinf(psnr(a, a, 255)).all()
    with pytest.raises(ValueError, match="span is 0"):
        psnr(a, a, 0)
    with pytest.raises(ValueError, match="each sample needs its pair"):
        psnr(a, a[:2], 255)


@pytest.mark.parametrize("shape", [(30,), (16, 19), (11, 12, 13)])
def test_ssim_on_any_number_of_axes(shape):
    """1 for itself; symmetric; the luminance term alone for constants; does not depend on the order of axes."""
    a, b = rng().uniform(size=(3, 2, *shape)), rng(1).uniform(size=(3, 2, *shape))
    np.testing.assert_allclose(ssim(a, a, 1), 1)
    np.testing.assert_allclose(ssim(a, b, 1), ssim(b, a, 1))
    assert (ssim(a, 0.9 * a + 0.1 * b, 1) > ssim(a, 0.5 * a + 0.5 * b, 1)).all()
    low, high = np.full_like(a, 0.2), np.full_like(a, 0.6)
    np.testing.assert_allclose(ssim(low, high, 1), (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4))
    np.testing.assert_allclose(ssim(a, b, 1), ssim(np.moveaxis(a, 2, -1), np.moveaxis(b, 2, -1), 1))
    with pytest.raises(ValueError, match="window of 11"):
        ssim(a[:, :, :10], b[:, :, :10], 1)


def test_pairs_agree_with_torchmetrics():
    image = pytest.importorskip("torchmetrics.functional.image")
    torch = pytest.importorskip("torch")
    a = rng().uniform(0, 255, size=(4, 3, 24, 30))
    b = np.clip(a + rng(1).normal(size=a.shape) * 30, 0, 255)
    pair = torch.from_numpy(b), torch.from_numpy(a)
    _, places = image.structural_similarity_index_measure(
        *pair, data_range=255.0, reduction="none", return_full_image=True
    )
    inner = places[..., 5:-5, 5:-5]  # beyond, it looks at the image mirrored at its edge
    np.testing.assert_allclose(ssim(a, b, 255.0), inner.mean((1, 2, 3)), rtol=1e-6)
    other = image.peak_signal_noise_ratio(*pair, data_range=255.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(psnr(a, b, 255.0), other, rtol=1e-6)
