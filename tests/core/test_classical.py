"""Laws of the classical methods: each removes noise, in colour and grey."""

import numpy as np
import pytest
import skimage.data

from raydenoise.core.classical import CLASSICAL, check_installed
from raydenoise.core.metrics import as_float, quality
from raydenoise.core.noise import add_awgn


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["median", "wavelet", "nlm"])
def test_noise_becomes_less(name: str, channels: int) -> None:
    clean = as_float(skimage.data.astronaut()[40:140, 180:300, :channels])
    for sigma in (15, 50):
        noisy = add_awgn(clean, sigma=sigma, rng=np.random.default_rng(0))
        denoised = CLASSICAL[name](noisy, sigma)
        assert denoised.shape == clean.shape
        before, after = quality(clean, np.clip(noisy, 0, 1)).psnr, quality(clean, np.clip(denoised, 0, 1)).psnr
        assert before is not None
        assert after is not None
        assert after > before + 1


def test_bm3d_is_the_users_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydenoise.core.classical.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="models names 'bm3d', and the package bm3d is not installed; allowed"):
        check_installed("bm3d")
    check_installed("nlm")
