"""Metrics of features against closed forms, simulation, and the libraries that others measure with."""

import itertools

import numpy as np
import pytest

from justimage.evaluation.metrics import (
    FeatureMoments,
    frechet_distance,
    frechet_estimate,
    frechet_infinity,
    inception_score,
    kid,
)
from justimage.evaluation.neighbours import density_coverage, precision_recall, squared_distances, squared_radii
from justimage.evaluation.raw import radial_spectrum, spectrum_distance


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rotation(size: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(rng(seed).normal(size=(size, size)))[0]


def gaussian(mean, covariance) -> FeatureMoments:
    return FeatureMoments.from_covariance(500, np.asarray(mean, float), np.asarray(covariance, float))


def features(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Far from Gaussian: correlated, rectified, with long tails, as those of networks are."""
    mix = rng(99).normal(size=(size, size)) / np.sqrt(size)
    return np.maximum(rng(seed).standard_t(5, size=(count, size)) @ mix, -0.3).astype(np.float32)


def errors(estimates) -> np.ndarray:
    return np.array([each.error for each in estimates], dtype=float)


# ---- moments


def test_moments_add_up_in_any_order_and_split():
    x = features(1000, 12) + 300
    whole = FeatureMoments.of(x)
    cuts = [0, 1, 7, 400, 400, 401, 990, 1000]
    parts = [FeatureMoments.of(x[a:b], block=13) for a, b in itertools.pairwise(cuts)]
    for order in (range(len(parts)), reversed(range(len(parts))), rng(1).permutation(len(parts))):
        total = sum((parts[k] for k in order), FeatureMoments.of(x[:0]))
        assert total.count == 1000
        np.testing.assert_allclose(total.mean, whole.mean, rtol=1e-9)
        np.testing.assert_allclose(total.scatter, whole.scatter, rtol=1e-9, atol=1e-9 * np.trace(whole.scatter))
    np.testing.assert_allclose(whole.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)
    again = FeatureMoments.from_covariance(1000, whole.mean, whole.covariance)
    np.testing.assert_allclose(again.scatter, whole.scatter, rtol=1e-12)


def test_moments_of_a_memory_map_leave_it_as_it_is(tmp_path):
    np.save(tmp_path / "f.npy", features(50, 4))
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    np.testing.assert_array_equal(FeatureMoments.of(mapped, block=7).mean.shape, (4,))
    np.testing.assert_array_equal(mapped, features(50, 4))


def test_moments_refuse_what_they_cannot_use():
    x = features(20, 4)
    x[13, 2] = np.nan
    with pytest.raises(ValueError, match="sample 13"):
        FeatureMoments.of(x, block=5)
    with pytest.raises(ValueError, match="1 sample; a covariance needs at least 2"):
        _ = FeatureMoments.of(x[:1]).covariance
    with pytest.raises(ValueError, match=r"4 features against 3"):
        frechet_distance(FeatureMoments.of(x[:9]), FeatureMoments.of(x[:9, :3]))
    with pytest.raises(ValueError, match="shape"):
        FeatureMoments.from_covariance(9, np.zeros(3), np.eye(2))


# ---- Frechet distance


def spectrum(size: int, rank: int, seed: int) -> np.ndarray:
    """Variances that fall over six decades; zero beyond the rank."""
    values = 10.0 ** -(6 * rng(seed).random(size))
    values[rng(seed + 1).permutation(size)[rank:]] = 0
    return values


@pytest.mark.parametrize("rank", [40, 25, 3])
def test_frechet_of_commuting_covariances(rank):
    """|mu - mu'|^2 + sum (sqrt a - sqrt b)^2 in any orthogonal basis, for any rank."""
    a, b = spectrum(40, rank, 1), spectrum(40, rank, 5)
    mean = rng(2).normal(size=40) * 0.1
    q = rotation(40)
    closed = (mean**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    for basis in (np.eye(40), q):
        first, second = gaussian(mean, (basis * a) @ basis.T), gaussian(np.zeros(40), (basis * b) @ basis.T)
        assert frechet_distance(first, second) == pytest.approx(closed, rel=1e-6)
        assert frechet_distance(second, first) == pytest.approx(closed, rel=1e-6)


def test_frechet_in_one_dimension_and_of_a_scaled_covariance():
    assert frechet_distance(gaussian([3], [[4]]), gaussian([1], [[25]])) == pytest.approx(4 + 9, rel=1e-12)
    covariance = rotation(30) * spectrum(30, 30, 3) @ rotation(30).T
    for c in (0.3, 1.01, 7.0):
        closed = (1 - np.sqrt(c)) ** 2 * np.trace(covariance)
        distance = frechet_distance(gaussian(np.zeros(30), covariance), gaussian(np.zeros(30), c * covariance))
        assert distance == pytest.approx(closed, rel=1e-6)


@pytest.mark.parametrize("rank", [30, 11])
def test_frechet_of_a_gaussian_and_its_image_under_a_transport_map(rank):
    """A symmetric map T >= 0 is the gradient of a convex function, so optimal: E |x - T x|^2 = tr (I-T) S (I-T)."""
    factor = rng(1).normal(size=(30, rank))
    covariance = factor @ factor.T
    half = rng(2).normal(size=(30, 30)) / 6
    transport = half @ half.T + 0.1 * np.eye(30)
    off = np.eye(30) - transport
    distance = frechet_distance(
        gaussian(np.zeros(30), covariance), gaussian(np.ones(30), transport @ covariance @ transport)
    )
    assert distance == pytest.approx(30 + np.trace(off @ covariance @ off), rel=1e-6)


def test_frechet_of_orthogonal_supports_and_of_constants():
    """Nothing in common: the traces add up. A constant has no covariance, and a distance all the same."""
    a, b = np.diag([1.0, 2, 0, 0]), np.diag([0, 0, 3.0, 4])
    assert frechet_distance(gaussian(np.zeros(4), a), gaussian(np.zeros(4), b)) == pytest.approx(10, rel=1e-12)
    assert frechet_distance(gaussian(np.ones(4), 0 * a), gaussian(np.zeros(4), a)) == pytest.approx(7, rel=1e-12)


def test_frechet_to_itself_is_zero_and_it_is_symmetric():
    for count in (500, 20):
        a, b = FeatureMoments.of(features(count, 40)), FeatureMoments.of(features(300, 40, seed=1) * 1.1)
        assert abs(frechet_distance(a, a)) < 1e-12 * np.trace(a.covariance)
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_frechet_of_500_samples_in_2048_dimensions():
    """Rank 499: S is that of x, S' that of x T, with T = I + u u^T, for which the distance is known."""
    x = rng().normal(size=(500, 2048)) * 10.0 ** -(2 * rng(1).random(2048))
    u = rng(2).normal(size=2048) / np.sqrt(2048)
    pushed = x + np.outer(x @ u, u) + 0.01
    deviation = (x - x.mean(0)) @ u
    mean = (pushed.mean(0) - x.mean(0)) ** 2
    closed = mean.sum() + (u @ u) * (deviation @ deviation) / 499
    assert frechet_distance(FeatureMoments.of(x), FeatureMoments.of(pushed)) == pytest.approx(closed, rel=1e-6)


@pytest.mark.parametrize("make", [features, lambda n, d, seed=0: rng(seed).normal(size=(n, d)).astype(np.float32)])
def test_frechet_agrees_with_other_libraries(make):
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    linalg = pytest.importorskip("scipy.linalg")
    torch = pytest.importorskip("torch")
    x, y = make(700, 48), make(900, 48, seed=1) * np.float32(1.2)
    a, b = FeatureMoments.of(x), FeatureMoments.of(y)
    ours = frechet_distance(a, b)
    stats = [fidelity.fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
    assert ours == pytest.approx(
        fidelity.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"], rel=1e-3
    )
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    gap = a.mean - b.mean
    assert ours == pytest.approx(gap @ gap + np.trace(a.covariance + b.covariance - 2 * root), rel=1e-6)


def test_frechet_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = features(300, 24), features(400, 24, seed=1) + np.float32(0.1)

    class Same(torch.nn.Module):
        num_features = 24

        def forward(self, image):
            return image.flatten(1)

    metric = fid.FrechetInceptionDistance(feature=Same(), input_img_size=(1, 4, 6)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(x).double().reshape(-1, 1, 4, 6), real=True)
    metric.update(torch.from_numpy(y).double().reshape(-1, 1, 4, 6), real=False)
    assert frechet_distance(FeatureMoments.of(x), FeatureMoments.of(y)) == pytest.approx(
        float(metric.compute()), rel=1e-3
    )


# ---- its error and its limit

BENT = np.eye(12) + 0.3 * rng(5).normal(size=(12, 12)) / np.sqrt(12)
REFERENCE = gaussian(np.zeros(12), np.eye(12))
TRUE = frechet_distance(gaussian(np.full(12, 0.2), BENT @ BENT.T), REFERENCE)


def bent(count: int, seed: int) -> np.ndarray:
    return rng(seed).normal(size=(count, 12)) @ BENT.T + 0.2


def test_the_error_of_a_frechet_distance_is_its_spread_over_repeats():
    estimates = [frechet_estimate(bent(600, seed), REFERENCE) for seed in range(60)]
    spread = np.std([each.value for each in estimates], ddof=1)
    assert errors(estimates).mean() == pytest.approx(spread, rel=0.25)


def test_the_influence_is_the_derivative_of_the_distance():
    """Weighing one sample a little more moves the distance by its influence, also where the rank is deficient."""
    from justimage.evaluation.metrics import _influence

    for count in (200, 9):
        x = bent(count, 3)
        moments = FeatureMoments.of(x)
        influence = _influence(x, moments, REFERENCE)
        step = 1e-5
        weights = np.full(count, 1 / count)
        moved = []
        for sign in (1, -1):
            w = weights * (1 - sign * step) + sign * step * np.eye(count)[4]
            mean = w @ x
            off = (x - mean) * np.sqrt(w)[:, None]
            scale = count / (count - 1)
            moved.append(frechet_distance(gaussian(mean, off.T @ off * scale), REFERENCE))
        derivative = (moved[0] - moved[1]) / (2 * step)
        # the covariance divides by N - 1, the influence knows no such thing
        assert derivative == pytest.approx(influence[4] - influence.mean(), rel=3 / count)


def test_the_error_of_fixed_numbers_in_groups_is_that_within_them():
    """One group far off: what a free draw of its number would add is not in the spread, nor in the error."""
    groups = np.arange(600) % 3
    far = np.zeros((600, 12))
    far[:, 0] = 4.0 * (groups == 2)
    drawn = [bent(600, seed) / 3 + far for seed in range(60)]
    within = [frechet_estimate(each, REFERENCE, groups) for each in drawn]
    spread = np.std([each.value for each in within], ddof=1)
    assert errors(within).mean() == pytest.approx(spread, rel=0.25)
    assert errors([frechet_estimate(each, REFERENCE) for each in drawn]).mean() > 1.5 * spread


def test_frechet_infinity_takes_the_bias_away_and_adds_no_noise():
    plain = np.array([frechet_estimate(bent(150, seed), REFERENCE).value for seed in range(40)])
    limits = [frechet_infinity(bent(150, seed), REFERENCE) for seed in range(40)]
    limit = np.array([each.value for each in limits])
    assert plain.mean() - TRUE > 0.2
    assert abs(limit.mean() - TRUE) < (plain.mean() - TRUE) / 4
    assert limit.std() < 1.5 * plain.std()
    assert errors(limits).mean() == pytest.approx(limit.std(ddof=1), rel=0.4)
    assert frechet_infinity(bent(150, 1), REFERENCE, seed=3) == frechet_infinity(bent(150, 1), REFERENCE, seed=3)


def test_frechet_infinity_refuses_too_few_samples():
    with pytest.raises(ValueError, match="draw at least 39"):
        frechet_infinity(bent(38, 0), REFERENCE)
    assert np.isfinite(frechet_infinity(bent(39, 0), REFERENCE).value)
    with pytest.raises(ValueError, match="sizes is 1"):
        frechet_infinity(bent(100, 0), REFERENCE, sizes=1)


# ---- Inception score and KID


def test_inception_score_closed_forms():
    """1 where all predictions are equal; K where they are certain and balanced, however large the logits."""
    assert inception_score(np.zeros((100, 7))).value == pytest.approx(1)
    certain = np.tile(1e4 * np.eye(5), (20, 1))
    score = inception_score(certain, splits=4)
    assert score.value == pytest.approx(5)
    assert score.error == pytest.approx(0, abs=1e-9)
    assert inception_score(certain, splits=1).error is None
    with pytest.raises(ValueError, match="3 samples cannot be divided into 10"):
        inception_score(certain[:3])


def test_inception_score_agrees_with_torch_fidelity():
    oracle = pytest.importorskip("torch_fidelity.metric_isc")
    torch = pytest.importorskip("torch")
    logits = (3 * rng().standard_t(4, size=(437, 20))).astype(np.float32)
    other = oracle.isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)
    ours = inception_score(logits)
    assert ours.value == pytest.approx(other["inception_score_mean"], rel=1e-6)
    assert ours.error == pytest.approx(other["inception_score_std"], rel=1e-6)


def test_kid_agrees_with_torch_fidelity_on_the_same_draws():
    oracle = pytest.importorskip("torch_fidelity.metric_kid")
    torch = pytest.importorskip("torch")
    x, y = features(300, 32), features(400, 32, seed=1) * np.float32(1.2)
    other = oracle.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=20, kid_subset_size=100, rng_seed=2020, verbose=False
    )
    ours = kid(x, y, subsets=20, subset_size=100)
    assert ours.value == pytest.approx(other["kernel_inception_distance_mean"], rel=1e-3)
    assert ours.subset_size == 100


def test_kid_of_whole_sets_agrees_with_torchmetrics():
    module = pytest.importorskip("torchmetrics.image.kid")
    torch = pytest.importorskip("torch")
    x, y = features(200, 32), features(200, 32, seed=1) * np.float32(1.2)
    other = module.poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double())
    ours = kid(x, y, subsets=1)
    assert ours.value == pytest.approx(float(other), rel=1e-6)
    assert ours.subset_size == 200


def test_the_error_of_kid_is_its_spread_over_repeats():
    pairs = [
        (rng(seed).normal(size=(300, 8)), 1.2 * rng(seed + 1000).normal(size=(400, 8)) + 0.2) for seed in range(50)
    ]
    for settings in ({"subsets": 15, "subset_size": 100}, {"subsets": 1}):
        estimates = [kid(a, b, **settings) for a, b in pairs]
        spread = np.std([each.value for each in estimates], ddof=1)
        assert errors(estimates).mean() == pytest.approx(spread, rel=0.4)


def test_kid_is_unbiased_and_refuses_one_sample():
    """The expectation of equal distributions is 0, and single values fall on both sides."""
    values = [kid(rng(s).normal(size=(60, 6)), rng(s + 500).normal(size=(60, 6)), subsets=1).value for s in range(100)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 10
    with pytest.raises(ValueError, match="KID needs"):
        kid(np.zeros((1, 3)), np.zeros((9, 3)))


# ---- neighbours


def test_distances_and_radii_are_those_of_the_definition():
    x, y = features(700, 6) + 1000, features(2100, 6, seed=1) + 1000  # more than a block each way
    direct = ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(-1)
    for rows, distances in squared_distances(x, y):
        np.testing.assert_allclose(distances, direct[rows], rtol=1e-6, atol=1e-9)
    own = np.sort(((x[:, None].astype(np.float64) - x[None]) ** 2).sum(-1), 1)
    np.testing.assert_allclose(squared_radii(x, 4), own[:, 4], rtol=1e-6)
    with pytest.raises(ValueError, match="3 samples have no neighbour number 3"):
        squared_radii(x[:3], 3)


def test_precision_and_recall_agree_with_torch_fidelity():
    oracle = pytest.importorskip("torch_fidelity.metric_prc")
    torch = pytest.importorskip("torch")
    real, generated = features(600, 8), features(500, 8, seed=1) * np.float32(1.3) + np.float32(0.2)
    other = oracle.prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=3, prc_batch_size=10000,
        save_cpu_ram=False, verbose=False,
    )  # fmt: skip
    precision, recall = precision_recall(real, generated)
    assert 0.1 < precision < 0.95
    assert 0.1 < recall < 0.95
    assert precision == pytest.approx(other["precision"], rel=1e-3)
    assert recall == pytest.approx(other["recall"], rel=1e-3)


def test_neighbours_of_points_on_a_line():
    """Counted by hand: real 0 1 2 10, radii 1 1 1 8 for k = 1; generated 0.5 and 30, radii 29.5."""
    real, generated = np.array([[0.0], [1], [2], [10]]), np.array([[0.5], [30]])
    assert precision_recall(real, generated, k=1) == (0.5, 1.0)
    assert density_coverage(real, generated, k=1) == (2 / 2, 2 / 4)


def test_density_and_coverage_of_equal_distributions():
    """1 and 1 - (N - 1) ... (N - k) / ((2 N - 1) ... (2 N - k)), whatever the distribution."""
    pairs = [density_coverage(features(300, 5, seed=s), features(300, 5, seed=s + 100)) for s in range(12)]
    ks = np.arange(1, 6)
    density, coverage = np.mean(pairs, axis=0)
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - np.prod((300 - ks) / (600 - ks)), abs=0.02)


def test_neighbours_refuse_features_of_two_extractors():
    for metric in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match="4 features against 3"):
            metric(np.zeros((9, 4)), np.zeros((9, 3)))


# ---- what the metrics claim to see


def pictures(count: int, seed: int, modes=(0, 1, 2, 3)) -> np.ndarray:
    """Stripes of one of four directions with some noise, (N, 1, 16, 16): four modes."""
    draw = rng(seed)
    down, across = np.mgrid[:16, :16]
    waves = np.stack([down, across, down + across, down - across])[draw.choice(modes, count)]
    phase = draw.uniform(0, 2 * np.pi, (count, 1, 1))
    return (np.sin(2 * np.pi * waves / 4 + phase) + 0.1 * draw.normal(size=(count, 16, 16)))[:, None]


def blur(x: np.ndarray) -> np.ndarray:
    for axis in (2, 3):
        x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    return x


def seen(x: np.ndarray) -> np.ndarray:
    """Features: the power in 16 filters of random phase, which knows direction and sharpness."""
    filters = np.fft.fft2(x[:, 0], norm="ortho")
    return np.log(np.abs(filters[:, [0, 4, 4, 4, 1, 7], [4, 0, 4, 12, 2, 7]]) + 0.1)


def scores(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    a, b = seen(real), seen(made)
    precision, recall = precision_recall(a, b)
    density, coverage = density_coverage(a, b)
    return {
        "fd": frechet_distance(FeatureMoments.of(a), FeatureMoments.of(b)),
        "kid": kid(a, b).value,
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "spectrum": spectrum_distance(radial_spectrum(real), radial_spectrum(made)),
    }


def test_each_metric_sees_what_it_claims_to_see():
    real = pictures(400, 0)
    good = scores(real, pictures(400, 1))
    blurred = scores(real, blur(pictures(400, 1)))
    dropped = scores(real, pictures(400, 1, modes=(0, 1, 2)))
    noisy = scores(real, pictures(400, 1) + 0.5 * rng(2).normal(size=(400, 1, 16, 16)))
    for bad in (blurred, dropped, noisy):
        assert bad["fd"] > 5 * good["fd"]
        assert bad["kid"] > 5 * abs(good["kid"])
    for bad in (blurred, noisy):
        assert bad["spectrum"] > 5 * good["spectrum"]
        assert bad["precision"] < good["precision"] - 0.3
        assert bad["density"] < good["density"] - 0.3
    assert dropped["recall"] < good["recall"] - 0.15
    assert dropped["coverage"] < good["coverage"] - 0.15
    assert dropped["precision"] > good["precision"] - 0.1  # which is right: what there is looks real
