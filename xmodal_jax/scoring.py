"""How an evaluation scores pairs: its name, in words and in the name of the file it writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def scoring_name(section: Mapping[str, Any]) -> str:
    """The name of what a section `evaluate` of a configuration asks for.

    Returns "exact", "pooled" (the first stage alone) or "rerank20" (the best 20 of the first stage
    are scored again).
    """
    if section.get("score") == "pooled":
        return "pooled"
    if k := section.get("rerank_top_k"):
        return f"rerank{k}"
    return "exact"


def evaluation_path(workdir: Path, split: str, protocol: str, scoring: str) -> Path:
    """The file with the metrics of one split under one protocol and one scoring."""
    suffix = "" if scoring == "exact" else f"_{scoring}"
    return workdir / f"evaluation_{split}_{protocol}{suffix}.json"


def report_path(workdir: Path, split: str, protocol: str, scoring: str) -> Path:
    """The directory of the report that belongs to `evaluation_path`."""
    name = evaluation_path(workdir, split, protocol, scoring).stem
    return workdir / name.replace("evaluation_", "report_", 1)


def describe(scoring: str) -> str:
    """The name in a few words, for a reader who has not seen the configuration."""
    if scoring.startswith("rerank"):
        return f"re-ranked {scoring.removeprefix('rerank')} of the first stage"
    return "first stage only" if scoring == "pooled" else scoring
