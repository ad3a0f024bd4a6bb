"""Functions on arrays that know no model: embeddings, pair scorers, score matrices."""
