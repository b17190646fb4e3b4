import numpy as np
import pytest

from raydenoise.training.batches import Sample, training_batch
from raydenoise.training.objective import loss, optimizer
from raydenoise.training.recipe import Recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed: 1 or more"),
        ({"warmup_steps": -1}, "warmup_steps is -1; allowed: 0 or more"),
        ({"grey_share": 1.5}, "grey_share is 1.5; allowed: 0 to 1"),
        ({"soft_share": 1.1}, "soft_share is 1.1; allowed: 0 to 1"),
        ({"colour_share": -0.1}, "colour_share is -0.1; allowed: 0 to 1"),
        ({"ema": 1.0}, "ema is 1.0; allowed: 0 to below 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; allowed: above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; allowed: above 0"),
        ({"sigma_power": 0.0}, "sigma_power is 0.0; allowed: above 0"),
        ({"sigma_range": (9.0, 3.0)}, r"sigma_range is \(9.0, 3.0\); allowed: 0 <= low <= high"),
        ({"peak_range": (0.5, 3.0)}, r"peak_range is \(0.5, 3.0\); allowed: 1 <= low <= high"),
        ({"loss": "l2"}, "loss is 'l2'; allowed: l1, mse, charbonnier, psnr"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; allowed: adam, adamw, muon"),
        ({"precision": "float16"}, "precision is 'float16'; allowed: float32, bfloat16"),
        ({"schedule": "linear"}, "schedule is 'linear'; allowed: cosine, constant"),
        ({"noise": "salt"}, "noise is 'salt'; allowed: awgn, poisson-gaussian, paired"),
        ({"augment": ("flip", "blur")}, "augment is 'blur'; allowed: flip, turn, channels, brightness"),
    ],
)
def test_a_recipe_out_of_range_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_the_levels_are_those_of_the_noise_that_a_patch_gets() -> None:
    assert Recipe(sigma_range=(5.0, 50.0)).levels == (5, 50)
    photons = Recipe(noise="poisson-gaussian", sigma_range=(3.0, 4.0), peak_range=(2601.0, 3000.0))
    assert photons.levels == pytest.approx((3, np.hypot(5, 4)))  # 255 / sqrt(2601) = 5 at white
    samples = [Sample(np.full((8, 8, 3), value, np.uint8), 0, value) for value in range(256)]
    noisy, _ = training_batch(samples, recipe=photons, inputs=4, channels=3)
    told = noisy[..., 3] * 255
    assert 3 <= told.min() < 3.5
    assert 6 < told.max() <= photons.levels[1]


def rates(recipe: Recipe, *steps: int) -> list[float]:
    rate = optimizer(recipe)._learning_rate
    return [float(rate(step)) for step in steps]


def test_the_cosine_rises_and_falls() -> None:
    recipe = Recipe(steps=1000, warmup_steps=100, learning_rate=1e-3)
    assert rates(recipe, 0, 50, 100, 550, 1000) == pytest.approx([0, 5e-4, 1e-3, 5e-4, 0], abs=1e-6)


def test_a_constant_rate_rises_and_stays() -> None:
    recipe = Recipe(steps=1000, warmup_steps=100, learning_rate=1e-3, schedule="constant")
    assert rates(recipe, 0, 50, 100, 550, 1000) == pytest.approx([0, 5e-4, 1e-3, 1e-3, 1e-3], abs=1e-6)


def test_without_warmup_the_rate_begins_at_its_peak() -> None:
    assert rates(Recipe(steps=10, warmup_steps=0, learning_rate=1e-3), 0, 10) == pytest.approx([1e-3, 0], abs=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("l1", 0.15), ("mse", 0.025), ("charbonnier", 0.15)])
def test_losses_are_means(name: str, expected: float) -> None:
    import numpy as np

    clean = np.zeros((1, 2, 1, 1), np.float32)
    denoised = np.array([0.1, -0.2], np.float32).reshape(clean.shape)
    assert float(loss(Recipe(loss=name))(clean, denoised)) == pytest.approx(expected, rel=1e-3)


def test_the_psnr_loss_weighs_patches_as_a_mean_psnr_does() -> None:
    import numpy as np

    clean = np.zeros((2, 4, 3, 3), np.float32)
    denoised = clean + np.array([0.1, 0.03], np.float32).reshape(2, 1, 1, 1)
    measure = loss(Recipe(loss="psnr"))
    before = float(measure(clean, denoised))
    for better in ([0.5, 1], [1, 0.5]):  # 6 dB on either patch
        gain = before - float(measure(clean, denoised * np.array(better, np.float32).reshape(2, 1, 1, 1)))
        assert gain == pytest.approx(np.log(4) / 2, rel=0.1)  # the floor takes a little of the small error's
    assert float(measure(clean, clean)) == 0
