"""One vector an image and one a caption whose dot product is nearly their alignment score.

LEMUR (2601.21853): what a word finds in an image, y(word) = max over regions of cos(word, region),
is a function of the word, and a linear one of enough random features of the word:
y(word) ~ a . phi(word). The weights a are the image's vector, found in closed form by least
squares; summed over a caption's words, the features are the caption's. So

    sum over words of max over regions  ~  a . sum over words of phi(word)

is one dot product. Both vectors are whitened (phi has unit covariance, the weights are turned the
other way), which changes no product and lets int8 keep their order.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.ops.embeddings import Embeddings, without_padding

FEATURES = 512
WORDS = 4096  # from which the weights of an image are found; twice as many find no more
_RIDGE = 1e-4  # of the mean eigenvalue
_IMAGES = 8  # whose similarities with all words exist at once
_KEEP = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Lemur:
    """The features, and the solution of the least squares for any image.

    Attributes:
      words: [n, D] those that every image is asked.
      directions: [D, M - 1], offsets: [M - 1]; features are relu(word @ directions + offsets), 1.
      whitening: [M, M] symmetric, from features to those of unit covariance.
      solution: [n, M] from an image's answers to its whitened weights.
    """

    words: Any
    directions: Any
    offsets: Any
    whitening: Any
    solution: Any

    def arrays(self) -> dict[str, np.ndarray]:
        """For `shards.write_directory`; `Lemur(**arrays)` is the same again."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    def image_codes(self, images: Embeddings) -> np.ndarray:
        """[n, M] float32 of n images."""
        return np.asarray(_image_codes(self, images.tokens, images.mask))

    def caption_codes(self, captions: Embeddings) -> np.ndarray:
        """[n, M] float32 of n captions."""
        return np.asarray(_caption_codes(self, captions.tokens, captions.mask))


def fit(words: np.ndarray, *, features: int = FEATURES, seed: int = 0) -> Lemur:
    """The features and the solver for the words [n, D] that a collection may be asked."""
    rng = np.random.default_rng(seed)
    words = np.asarray(words, np.float32)
    width = words.shape[1]
    directions = rng.standard_normal((width, features - 1)).astype(np.float32)
    # Each feature is on for a share of the words that is its own.
    projected = words @ directions
    shares = rng.uniform(0.05, 0.95, features - 1)
    offsets = -np.take_along_axis(
        np.sort(projected, axis=0), (shares * (len(words) - 1)).astype(int)[None], axis=0
    )[0]
    scale = np.maximum(projected.std(axis=0), 1e-6)
    directions, offsets = directions / scale, offsets / scale
    phi = np.asarray(_features(words, directions, offsets), np.float64)
    covariance = phi.T @ phi / len(words)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0) + _RIDGE * values.mean()
    whitening = (vectors / np.sqrt(values)) @ vectors.T
    # Least squares for phi @ whitening, whose covariance is the identity: no system to solve.
    solution = phi @ whitening / len(words)
    return Lemur(
        words,
        directions,
        offsets,
        whitening.astype(np.float32),
        solution.astype(np.float32),
    )


def _features(words: Any, directions: Any, offsets: Any) -> jax.Array:
    """[n, D] -> [n, M]."""
    on = jax.nn.relu(jnp.matmul(words, directions, precision=_KEEP) + offsets[None])
    return jnp.concatenate([on, jnp.ones((len(on), 1), on.dtype)], axis=1)


@jax.jit
def _image_codes(lemur: Lemur, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    def one(image: tuple[jax.Array, jax.Array]) -> jax.Array:
        regions = without_padding(image[0].astype(jnp.float32), image[1])
        answers = jnp.max(
            jnp.where(image[1][:, None], regions @ jnp.asarray(lemur.words).T, -jnp.inf), axis=0
        )
        return jnp.where(jnp.any(image[1]), answers, 0.0)

    answers = jax.lax.map(one, (tokens, mask), batch_size=_IMAGES)
    return jnp.matmul(answers, lemur.solution, precision=_KEEP)


@jax.jit
def _caption_codes(lemur: Lemur, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    words = without_padding(tokens.astype(jnp.float32), mask)
    phi = _features(words.reshape(-1, words.shape[-1]), lemur.directions, lemur.offsets)
    phi = phi.reshape(*mask.shape, -1)
    total = jnp.sum(jnp.where(mask[..., None], phi, 0), axis=1)
    return jnp.matmul(total, lemur.whitening, precision=_KEEP)
