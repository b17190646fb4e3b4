"""Laws of the samples: a function of seed, epoch and patch alone; noise of the level that the plane tells."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import skimage.data

from raydenoise.training.batches import (
    VALIDATION_SIGMAS,
    Sample,
    mean_psnr,
    prefetched,
    stacked,
    training_batch,
    validation_pairs,
)
from raydenoise.training.recipe import Recipe

PATCH = skimage.data.astronaut()[:128, :128]


def pair(
    patch: int = 0, *, epoch: int = 0, inputs: int = 4, channels: int = 3, clean: np.ndarray = PATCH, **recipe: object
) -> tuple[np.ndarray, np.ndarray]:
    sample = Sample(clean, epoch=epoch, patch=patch)
    noisy, clean = training_batch([sample], recipe=Recipe(**recipe), inputs=inputs, channels=channels)
    return noisy[0], clean[0]


def test_a_sample_is_a_function_of_seed_epoch_and_patch() -> None:
    for one, other in zip(pair(3, epoch=2, seed=1), pair(3, epoch=2, seed=1), strict=True):
        np.testing.assert_array_equal(one, other)
    for other in ({"epoch": 2, "seed": 2}, {"epoch": 3, "seed": 1}):
        assert (pair(3, epoch=2, seed=1)[0] != pair(3, **other)[0]).any()
    assert (pair(3, epoch=2, seed=1)[0] != pair(4, epoch=2, seed=1)[0]).any()


@pytest.mark.parametrize("noise", ["awgn", "poisson-gaussian"])
def test_the_plane_tells_the_noise_that_was_added(noise: str) -> None:
    for patch in range(5):
        noisy, clean = pair(patch, noise=noise, grey_share=0.0, quantized_share=0.0, sigma_range=(10.0, 60.0))
        assert np.std(noisy[..., :3] - clean) == pytest.approx(noisy[0, 0, 3], rel=0.03)
        assert (noisy[..., 3] == noisy[0, 0, 3]).all()


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_the_power_tells_how_often_a_level_comes(power: float) -> None:
    recipe = {"sigma_range": (0.0, 80.0), "sigma_power": power, "clean": PATCH[:8, :8]}
    levels = [pair(patch, **recipe)[0][0, 0, 3] * 255 for patch in range(400)]
    for share in (0.25, 0.5, 0.75):
        below = np.mean(np.array(levels) < 80 * share**power)
        assert below == pytest.approx(share, abs=0.08)  # three standard deviations


def test_a_network_without_a_noise_map_gets_no_plane() -> None:
    assert pair(inputs=3)[0].shape == (128, 128, 3)


def test_a_grey_sample_has_one_noise_for_three_planes() -> None:
    for noisy, clean in (pair(grey_share=1.0), pair(grey_share=0.0, clean=PATCH[..., :1])):
        for values in (noisy[..., :3], clean):
            assert values.shape[-1] == 3
            assert (values[..., :1] == values).all()


def test_a_grey_patch_is_validated_with_one_noise_for_three_planes() -> None:
    for noisy, clean in validation_pairs(Sample(PATCH[..., :1], epoch=0, patch=0), inputs=4, channels=3):
        assert noisy.shape == (*PATCH.shape[:2], 4)
        for values in (noisy[..., :3], clean):
            assert (values[..., :1] == values).all()
        assert np.std(noisy[..., 0] - clean[..., 0]) == pytest.approx(noisy[0, 0, 3], rel=0.05)


def test_other_colours_change_the_clean_patch_and_leave_the_noise() -> None:
    settings = {"augment": (), "grey_share": 0.0, "quantized_share": 0.0, "sigma_range": (20.0, 20.0)}
    noisy, clean = pair(colour_share=1.0, **settings)
    assert np.abs(clean - PATCH / np.float32(255)).mean() > 0.01
    assert clean.min() >= 0
    assert clean.max() <= 1
    assert np.std(noisy[..., :3] - clean) == pytest.approx(20 / 255, rel=0.03)
    grey = PATCH[..., :1]
    kept = pair(colour_share=1.0, clean=grey, **settings)[1]
    np.testing.assert_allclose(kept[..., :1], grey / np.float32(255), atol=1e-6)


def test_a_softened_patch_gets_the_noise_afterwards() -> None:
    settings = {"augment": (), "grey_share": 0.0, "quantized_share": 0.0, "sigma_range": (20.0, 20.0)}
    noisy, clean = pair(soft_share=1.0, **settings)
    sharp = pair(soft_share=0.0, **settings)[1]
    assert np.abs(np.diff(clean, axis=0)).mean() < 0.9 * np.abs(np.diff(sharp, axis=0)).mean()
    rest = noisy[..., :3] - clean
    assert np.std(rest) == pytest.approx(20 / 255, rel=0.03)
    assert abs(np.corrcoef(rest[1:].ravel(), rest[:-1].ravel())[0, 1]) < 0.02


def test_a_grey_network_gets_the_luma_of_a_coloured_patch() -> None:
    noisy, clean = pair(inputs=1, channels=1, augment=(), sigma_range=(0.0, 0.0), quantized_share=0.0)
    assert noisy.shape == clean.shape == (128, 128, 1)
    np.testing.assert_allclose(clean[..., 0], PATCH @ np.array([0.299, 0.587, 0.114]) / 255, atol=1e-5)


def test_a_quantized_sample_holds_what_a_file_holds() -> None:
    noisy = pair(quantized_share=1.0, sigma_range=(50.0, 75.0))[0][..., :3]
    np.testing.assert_allclose(noisy * 255, np.rint(noisy * 255), atol=1e-4)
    assert (noisy.min(), noisy.max()) == (0, 1)


def test_pairs_move_together_and_keep_their_noise() -> None:
    noise = np.random.default_rng(0).integers(-20, 21, PATCH.shape)
    noisy = np.clip(PATCH + noise, 0, 255).astype(np.uint8)
    for patch in range(4):
        sample = Sample(PATCH, epoch=0, patch=patch, noisy=noisy, sigma=12.0)
        recipe = Recipe(noise="paired", augment=("flip", "turn", "channels", "brightness"))
        (given,), (clean,) = training_batch([sample], recipe=recipe, inputs=4, channels=3)
        factor = given[0, 0, 3] * 255 / 12
        assert 0.5 <= factor <= 1
        before, after = noisy.astype(float) - PATCH, (given[..., :3] - clean) * 255 / factor
        np.testing.assert_allclose(np.sort(after.ravel()), np.sort(before.ravel()), atol=1e-2)


def test_a_grey_network_sees_planes_of_coloured_pairs_as_the_denoiser_feeds_them() -> None:
    noisy = PATCH ^ np.array([1, 2, 4], np.uint8)  # so that a plane tells which one it is
    seen = set()
    for patch in range(20):
        sample = Sample(PATCH, epoch=0, patch=patch, noisy=noisy, sigma=12.0)
        recipe = Recipe(noise="paired", augment=())
        (given,), (clean,) = training_batch([sample], recipe=recipe, inputs=2, channels=1)
        (plane,) = (k for k in range(3) if np.allclose(given[..., 0] * 255, noisy[..., k], atol=1e-3))
        np.testing.assert_allclose(clean[..., 0] * 255, PATCH[..., plane], atol=1e-3)
        seen.add(plane)
    assert seen == {0, 1, 2}
    ((given, clean),) = validation_pairs(sample, inputs=2, channels=1)
    np.testing.assert_allclose(given[..., 0] * 255, noisy[..., 1], atol=1e-3)
    np.testing.assert_allclose(clean[..., 0] * 255, PATCH[..., 1], atol=1e-3)


def test_sixteen_bit_patches_keep_their_low_bits() -> None:
    deep = PATCH.astype(np.uint16) * 257 + 1
    clean = pair(clean=deep, augment=(), grey_share=0.0)[1]
    np.testing.assert_allclose(clean * 65535, deep, atol=0.02)


def test_validation_noise_is_always_the_same() -> None:
    sample = Sample(PATCH, epoch=0, patch=7)
    once, again = (validation_pairs(sample, inputs=4, channels=3) for _ in range(2))
    assert len(once) == len(VALIDATION_SIGMAS)
    for (noisy, clean), (other, _), sigma in zip(once, again, VALIDATION_SIGMAS, strict=True):
        np.testing.assert_array_equal(noisy, other)
        assert np.std(noisy[..., :3] - clean) * 255 == pytest.approx(sigma, rel=0.03)
        assert noisy[0, 0, 3] * 255 == pytest.approx(sigma)


def test_a_validation_pair_stays_as_it_is() -> None:
    ((noisy, clean),) = validation_pairs(Sample(PATCH, 0, 0, PATCH[::-1], 9.0), inputs=4, channels=3)
    np.testing.assert_allclose(noisy[..., :3] * 255, PATCH[::-1], atol=1e-3)
    np.testing.assert_allclose(clean * 255, PATCH, atol=1e-3)
    assert noisy[0, 0, 3] * 255 == pytest.approx(9.0)


def test_mean_psnr_is_that_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    clean = np.random.default_rng(0).random((2, 8, 9, 3), np.float32)
    noisy = clean + np.float32(0.1)
    expected = [peak_signal_noise_ratio(a, np.clip(b, 0, 1), data_range=1) for a, b in zip(clean, noisy, strict=True)]
    assert mean_psnr(clean, noisy) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_sample_is_the_same_in_every_batch() -> None:
    samples = [Sample(PATCH[:64, :64], epoch=0, patch=patch) for patch in range(40)]  # grey and quantized ones too
    noisy, clean = training_batch(samples, recipe=Recipe(), inputs=4, channels=3)
    assert (noisy.shape, clean.shape) == ((40, 64, 64, 4), (40, 64, 64, 3))
    assert noisy.dtype == clean.dtype == np.float32
    alone = stacked(pair(sample.patch, clean=sample.clean) for sample in samples)
    np.testing.assert_array_equal(noisy, alone[0])
    np.testing.assert_array_equal(clean, alone[1])


def test_prefetching_keeps_order_stays_ahead_and_stops() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = prefetched(items, depth=3)
    assert [next(ahead), next(ahead)] == [0, 1]
    time.sleep(0.3)
    assert 4 <= len(made) <= 7
    ahead.close()
    assert len(made) <= 7
    assert "batches" not in {thread.name for thread in threading.enumerate()}
    assert list(prefetched(lambda: iter(range(10)))) == list(range(10))


def test_an_error_in_the_thread_comes_out() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    ahead = prefetched(items)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
