"""Imports point one way, and TensorFlow stays in data_pipeline."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A module may import from its own layer and from those above it in this list.
LAYERS = [
    ["errors", "matched_words"],
    [
        "ops",
        "losses",
        "augment",
        "metrics",
        "partitioning",
        "partition_presets",
        "distributed",
        "metric_writer",
        "scoring",
        "workdir",
        "run_config",
        "optimizer",
    ],
    ["models"],
    ["objective", "train_state", "train_step", "checkpoint", "collapse", "run_record"],
    ["evaluators", "export"],
    ["experiment", "command_line", "retrieval", "visualize"],
    ["report"],
    ["run_report"],
    ["train", "evaluate", "results", "ensemble"],
    ["main", "sweep"],
]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(part):
    return next((k for k, names in enumerate(LAYERS) if part in names), None)


def test_imports_point_one_way():
    for path in (ROOT / "xmodal_jax").rglob("*.py"):
        part = path.relative_to(ROOT / "xmodal_jax").parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        assert layer_of(part) is not None, f"{path} has no layer; add it to LAYERS"
        for name in imported(path):
            if name.startswith("xmodal_jax.") and (target := name.split(".")[1]) != part:
                assert layer_of(target) is None or layer_of(target) <= layer_of(part), (
                    f"{path} imports {name}"
                )


def test_packages_keep_to_themselves():
    for path in (ROOT / "data_pipeline").rglob("*.py"):
        assert not [n for n in imported(path) if n.split(".")[0] in ("xmodal_jax", "jax", "flax")]
    for path in (ROOT / "configs").rglob("*.py"):
        for name in imported(path):
            allowed = {"ml_collections", "configs"} | sys.stdlib_module_names
            assert name.split(".")[0] in allowed, path
    for path in (ROOT / "xmodal_jax").rglob("*.py"):
        assert not [n for n in imported(path) if n.split(".")[0].startswith("tensorflow")], path


def test_model_scorer_and_step_run_without_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None; "
        "import xmodal_jax.train_step, xmodal_jax.models, xmodal_jax.evaluators.retrieval, "
        "xmodal_jax.export, xmodal_jax.optimizer"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
