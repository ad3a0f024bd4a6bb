"""From score matrices to results: metrics of retrieval."""
