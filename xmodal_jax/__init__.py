"""Fine-grained image-text retrieval in JAX/Flax: encoders, alignment scoring, training, search."""
