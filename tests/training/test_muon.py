import keras
import numpy as np
import pytest

from raydenoise.training.muon import ConvMuon


def test_muon_moves_wide_kernels_along_every_direction_alike() -> None:
    kernel = keras.Variable(np.zeros((3, 3, 32, 24), np.float32))
    thin = keras.Variable(np.zeros((3, 3, 32, 12), np.float32))
    muon = ConvMuon(1.0, weight_decay=0.0, adam_weight_decay=0.0, adam_lr_ratio=0.5)
    gradient = (np.random.default_rng(0).normal(size=kernel.shape) * np.logspace(-1, 1, 24)).astype(np.float32)
    muon.apply([keras.ops.convert_to_tensor(g) for g in (gradient, gradient[..., :12])], [kernel, thin])
    step = keras.ops.convert_to_numpy(kernel).reshape(-1, 24)
    values = np.linalg.svd(step, compute_uv=False) / (0.2 * len(step) ** 0.5)
    assert values.min() > 0.6  # five Newton-Schulz steps bring them to 0.7..1.2 (Jordan, 2024)
    assert values.max() < 1.3
    assert np.sqrt(np.mean(step**2)) == pytest.approx(0.2, rel=0.15)
    assert (gradient.reshape(-1, 24) * step).sum() < 0  # downhill
    assert np.median(np.abs(keras.ops.convert_to_numpy(thin))) == pytest.approx(0.5, rel=1e-3)  # Adam's first step
