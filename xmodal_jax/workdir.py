"""The directory of a run: whose it is, its configuration, and files that are whole or absent."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from configs import common
from xmodal_jax.errors import UserError

# Changing these does not change what a run computes, so that a workdir admits it.
FREE_FIELDS = (
    *("data.dir", "mesh", "partition", "partition_rules", "scorer"),
    *("train.keep", "evaluate.batch_size"),
)
# Directories of an installation, compared by their last names: a checkout may move.
_DIRECTORIES = ("data.tokenizer", "model.text.pretrained")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that is the old or the new one at every moment, and never a part of it."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(content, indent=2) + "\n")
    aside.replace(path)


def claim_workdir(
    workdir: Path, config: ml_collections.ConfigDict, free: tuple[str, ...] = FREE_FIELDS
) -> None:
    """Makes a workdir this configuration's, or checks that it is.

    Before the first checkpoint there is nothing to protect: a start that failed may be corrected.

    Raises:
      UserError: it belongs to another configuration; the message names a field that differs.
    """
    path = workdir / "config.json"
    if not path.exists() or not has_checkpoint(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, config.to_dict())
        return
    for field, here, there in differences(workdir, config):
        if not any(field == f or field.startswith(f + ".") for f in free):
            raise UserError(
                f"workdir {workdir} belongs to a run with {field}={there!r}, not {here!r}; "
                "choose another --workdir or give the same configuration"
            )


def differences(
    workdir: Path, config: ml_collections.ConfigDict
) -> Iterator[tuple[str, object, object]]:
    """Fields in which a configuration differs from the workdir's: name, its own value, theirs."""
    mine = flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")
    others = flatten_dict(json.loads(json.dumps(read_config(workdir).to_dict())), sep=".")
    for field in sorted(mine.keys() | others.keys()):
        here, there = mine.get(field), others.get(field)
        if field in _DIRECTORIES:
            here, there = (str(name).split("/")[-2:] for name in (here, there))
        if here != there:
            yield field, here, there


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has saved a state or its best parameters there."""
    found = [*(workdir / "checkpoints").glob("*"), *(workdir / "best").glob("*")]
    return any(path.name.isdigit() for path in found)


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The configuration of a run.

    Fields that are newer than the run get their defaults, which change nothing; those of its model
    are its own.

    Raises:
      UserError: the directory is not that of a run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not the workdir of a run: it has no config.json")
    try:
        saved = _with_tuples(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; copy it from a backup") from error
    if not isinstance(saved, dict):
        raise UserError(f"{path} holds no configuration; copy it from a backup")
    defaults = common.get_config().to_dict()
    fields = defaults | saved
    for name, default in defaults.items():
        if isinstance(default, dict) and name != "model":
            fields[name] = default | saved.get(name, {})
    # The text encoder of the first runs had no name.
    fields["model"].get("text", {}).setdefault("encoder", "bert")
    return ml_collections.ConfigDict(fields)


def _with_tuples(value: Any) -> Any:
    """JSON knows no tuples: every list was one."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(_with_tuples(inner) for inner in value) if isinstance(value, list) else value
