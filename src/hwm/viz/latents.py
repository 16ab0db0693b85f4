"""Latent tokens as colours: the three directions in which the patches of one clip differ most, as red, green, blue.

One principal component analysis over all frames of the clip, so that a colour means the same in every frame. The
picture shows structure, not meaning: two clips, or two encoders, share no colours. Input tokens [T, H, W, D], output
uint8 [T, H, W, 3].
"""

import numpy as np

from hwm.errors import DataError

_CLIPPED_PERCENT = 1.0


def pca_colours(tokens_THWD: np.ndarray) -> np.ndarray:
    """Tokens of a clip -> one colour a patch.

    Deterministic: the covariance is decomposed in float64, and the sign of each component is fixed so that its largest
    loading is positive. Each component is stretched from its 1st to its 99th percentile over the whole clip; a
    direction in which the tokens do not differ is mid grey.

    Args:
        tokens_THWD: finite features [T, H, W, D], e.g. layer-normed latents; D >= 3.

    Returns:
        uint8 [T, H, W, 3].

    Raises:
        DataError: wrong shape, fewer than three features, or values that are not finite.
    """
    tokens_THWD = np.asarray(tokens_THWD)
    if tokens_THWD.ndim != 4 or tokens_THWD.shape[-1] < 3 or 0 in tokens_THWD.shape:
        raise DataError("tokens cannot be coloured", expected="[T, H, W, D] with D >= 3", found=str(tokens_THWD.shape))
    flat_LD = tokens_THWD.reshape(-1, tokens_THWD.shape[-1]).astype(np.float64)
    if not np.isfinite(flat_LD).all():
        raise DataError("tokens cannot be coloured", expected="finite values", found="NaN or infinity")
    flat_LD -= flat_LD.mean(axis=0)
    variances_D, directions_DD = np.linalg.eigh(flat_LD.T @ flat_LD / len(flat_LD))
    directions_D3 = directions_DD[:, ::-1][:, :3]  # eigh sorts upwards
    largest_3 = np.abs(directions_D3).argmax(axis=0)
    directions_D3 = directions_D3 * np.sign(directions_D3[largest_3, np.arange(3)])
    values_L3 = flat_LD @ directions_D3
    low_3, high_3 = np.percentile(values_L3, [_CLIPPED_PERCENT, 100 - _CLIPPED_PERCENT], axis=0)
    # A component far below the first is rounding noise: stretching it would paint noise in full colour.
    is_flat_3 = variances_D[::-1][:3] <= 1e-12 * max(variances_D[-1], np.finfo(np.float64).tiny)
    is_flat_3 |= high_3 <= low_3
    spread_3 = np.where(is_flat_3, 1.0, high_3 - low_3)
    unit_L3 = np.where(is_flat_3, 0.5, np.clip((values_L3 - low_3) / spread_3, 0, 1))
    return np.rint(unit_L3 * 255).astype(np.uint8).reshape(*tokens_THWD.shape[:3], 3)


def enlarge_patches(colours_THWR: np.ndarray, factor: int) -> np.ndarray:
    """Each patch as a square of `factor` pixels, with hard edges: uint8 [T, H·factor, W·factor, 3]."""
    return colours_THWR.repeat(factor, axis=1).repeat(factor, axis=2)
