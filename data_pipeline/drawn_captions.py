"""Which of its captions an image shows in an epoch of training."""

import numpy as np


def drawn_captions(
    image_ids: np.ndarray, counts: np.ndarray, *, seed: int, epoch: int
) -> np.ndarray:
    """Which of its captions each image shows in an epoch: a hash of (seed, image) plus the epoch.

    Args:
        image_ids: int [B].
        counts: int [B], number of captions of each image.

    Returns:
        int64 [B] in 0 .. counts - 1.
    """
    start = _mix(image_ids.astype(np.uint64) ^ _mix(np.array([seed], np.uint64)))
    count = counts.astype(np.uint64)
    return ((start % count + np.uint64(epoch) % count) % count).astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al., OOPSLA 2014): every output bit depends on every input bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
