"""Muon for convolutions: Keras' own takes matrices only."""

from typing import Any

import keras
from keras import ops

THIN = 16  # channels: a kernel that comes from or leads to pixels is no wide matrix
UPDATE_RMS = 0.2  # root mean square of an update at learning rate 1, near Adam's (Liu et al., 2025)


class ConvMuon(keras.optimizers.Muon):  # type: ignore[misc]  # keras has no type stubs
    """Muon on each convolution kernel as the matrix (height * width * inputs, outputs); AdamW on everything else.

    Five Newton-Schulz steps set all singular values of the momentum to nearly 1, so that no direction of a kernel can
    run away: a deep residual network without normalisation stays stable at learning rates where Adam's loss jumps.
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; its updates are scaled so that
    Adam's learning rates and weight decay fit: Liu et al., "Muon is scalable for LLM training", 2025.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "rms_rate": None})  # Keras' scaling is for matrices; ours stands below

    def _should_use_adamw(self, variable: Any) -> bool:
        return len(variable.shape) != 4 or min(variable.shape[2:]) <= THIN

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """Orthogonalise a kernel and scale it to a root mean square of `UPDATE_RMS`."""
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        update = super().zeropower_via_newtonschulz5(matrix, steps)
        return ops.reshape(UPDATE_RMS * max(matrix.shape) ** 0.5 * update, x.shape)
