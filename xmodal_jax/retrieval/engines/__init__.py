"""Engines that hold the items of a search: the embedded index, or Qdrant beside it."""
