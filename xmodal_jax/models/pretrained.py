"""Published weights to parameters and back, strictly: every tensor is consumed or known as unused.

  python -m xmodal_jax.main --config=configs/flickr30k.py:teran --mode=evaluate \\
    --config.init_from=f30k_MrSw.pth.tar --workdir=runs/published

reads a checkpoint of the public TERAN code, as `.pth.tar` (needs the extra `torch`) or safetensors.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from xmodal_jax.errors import UserError
from xmodal_jax.models import names
from xmodal_jax.models.bert import BertConfig
from xmodal_jax.models.teran import TeranConfig

Params = dict[str, Any]
PREFIX = "img_txt_enc."
# Parts of BERT checkpoints that a text encoder doesn't use; layers above num_layers are added.
_BERT_UNUSED = ("embeddings.position_ids", "pooler.", "cls.")


def _some(items: Iterable[str]) -> str:
    items = sorted(items)
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _convert(
    tensors: Mapping[str, np.ndarray], entries: list[names.Entry], unused: set[str], what: str
) -> Params:
    needed = {source for entry in entries for source in entry.sources}
    if missing := needed - tensors.keys():
        raise UserError(
            f"{what} lacks {len(missing)} tensors that this configuration needs: {_some(missing)}; "
            "use the configuration the weights were trained with"
        )
    if surplus := tensors.keys() - needed - unused:
        raise UserError(
            f"{what} has {len(surplus)} tensors that this configuration does not use: "
            f"{_some(surplus)}; use the configuration the weights were trained with"
        )
    flat = {}
    for entry in entries:
        leaf = sum(names.to_ours(entry, np.asarray(tensors[name])) for name in entry.sources)
        flat[entry.leaf] = np.ascontiguousarray(leaf)
    return traverse_util.unflatten_dict(flat, sep="/")


def params_from_state_dict(state_dict: Mapping[str, np.ndarray], config: TeranConfig) -> Params:
    """Parameters of `Teran(config)` from a state dict of the public TERAN code.

    Raises:
      UserError: a tensor is missing or surplus; the message names it.
    """
    tensors = {
        name.removeprefix("module.").removeprefix(PREFIX): x for name, x in state_dict.items()
    }
    unused = {*names.teran_unused(config), names.TERAN_ALIAS[0]}
    unused |= {name for name in tensors if name.endswith("position_ids")}
    return _convert(tensors, list(names.teran_entries(config)), unused, "the TERAN state dict")


def state_dict_from_params(params: Params, config: TeranConfig) -> dict[str, np.ndarray]:
    """The inverse: a state dict that the public TERAN code loads; its dead tensors are zeros."""
    flat = traverse_util.flatten_dict(params, sep="/")
    parts: dict[str, dict[int, np.ndarray]] = {}
    for entry in names.teran_entries(config):
        leaf = np.asarray(flat[entry.leaf])
        for k, source in enumerate(entry.sources):
            value = names.to_published(entry, leaf if k == 0 else np.zeros_like(leaf))
            parts.setdefault(source, {})[entry.part] = value
    tensors = {s: np.concatenate([p[i] for i in sorted(p)]) for s, p in parts.items()}
    dtype = tensors["img_proj.weight"].dtype
    tensors |= {name: np.zeros(shape, dtype) for name, shape in names.teran_unused(config).items()}
    alias, original = names.TERAN_ALIAS
    tensors[alias] = tensors[original]
    return {PREFIX + name: np.ascontiguousarray(x) for name, x in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); copy it again") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"reading {path} needs PyTorch; install the extra with: pip install 'xmodal_jax[torch]'"
        ) from error
    # The public checkpoints hold their command-line options; nothing else is let through.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # Without torch's own advice, which is to run whatever the file says.
            raise UserError(
                f"{path} can't be read safely: it is damaged, or holds more than tensors and "
                "options; copy it again, or save its tensors as safetensors"
            ) from error
    state = checkpoint.get("model", checkpoint)
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name from a `.safetensors` file or a torch checkpoint (`.pth.tar`)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist; check the path")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def write_state_dict(state_dict: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Writes tensors as safetensors."""
    from safetensors.numpy import save_file

    save_file(dict(state_dict), path)


def find(name_or_directory: str) -> Path:
    """The directory itself, or where the Hugging Face cache has (or fetches) a model's files."""
    path = Path(name_or_directory)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        files = ["config.json", "model.safetensors"]
        return Path(snapshot_download(name_or_directory, allow_patterns=files))
    except Exception as error:
        raise UserError(
            f"text.pretrained={name_or_directory!r} is neither a directory nor a model that could "
            f"be fetched ({type(error).__name__}); give a local directory"
        ) from error


def bert_config(directory: str | Path, num_layers: int = 0) -> BertConfig:
    """Sizes of the BERT in a Hugging Face directory, cut at `num_layers` (0: all of them)."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{directory} has no config.json; give a directory with a Hugging Face BERT"
        )
    raw = json.loads(path.read_text())
    if raw.get("model_type", "bert") != "bert" or raw.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path} describes a {raw.get('model_type')}; only BERT can be loaded")
    layers = raw["num_hidden_layers"]
    if num_layers > layers:
        raise UserError(
            f"num_layers={num_layers}, but {directory} has {layers}; use {layers} or less"
        )
    return BertConfig(
        vocab_size=raw["vocab_size"],
        width=raw["hidden_size"],
        num_layers=num_layers or layers,
        num_heads=raw["num_attention_heads"],
        mlp_dim=raw["intermediate_size"],
        max_positions=raw["max_position_embeddings"],
        dropout=raw["hidden_dropout_prob"],
        epsilon=raw["layer_norm_eps"],
    )


def bert_params(directory: str | Path, config: BertConfig) -> Params:
    """Parameters of `Bert(config)` from the `model.safetensors` of a Hugging Face directory."""
    path = Path(directory) / "model.safetensors"
    tensors = {name.removeprefix("bert."): x for name, x in read_state_dict(path).items()}
    entries = list(names.bert_entries("", "", config.num_layers, config.num_heads))
    entries = [entry._replace(leaf=entry.leaf.lstrip("/")) for entry in entries]

    def is_unused(name: str) -> bool:
        layer = name.split(".")[2] if name.startswith("encoder.layer.") else ""
        return name.startswith(_BERT_UNUSED) or (
            layer.isdigit() and int(layer) >= config.num_layers
        )

    return _convert(tensors, entries, {name for name in tensors if is_unused(name)}, str(path))
