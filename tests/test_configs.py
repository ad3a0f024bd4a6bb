"""Every configuration and variant: what it builds, and that misspelt fields are errors."""

import importlib

import jax
import pytest

from configs import common
from xmodal_jax import optimizer
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.train_state import abstract_params

PUBLISHED = 215_473_920 - 3_476_224  # without the tensors the public code never uses
SHARED = 198_674_176 - 3_476_224
# configuration, variant -> width of its regions, number of parameters
SIZES = {
    ("coco", "teran"): (2048, PUBLISHED),
    ("coco", "teran_shared"): (2048, SHARED),
    ("coco", "teran_symm"): (2048, PUBLISHED),
    ("coco", "teran_mwsr"): (2048, PUBLISHED),
    ("coco", "tern"): (2048, PUBLISHED),
    ("flickr30k", "teran"): (2048, PUBLISHED),
}


@pytest.mark.parametrize(("name", "variant"), SIZES)
def test_published_configurations_have_the_published_size(name, variant):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    config.model.text.pretrained = ""  # the same sizes, without the files
    width, expected = SIZES[name, variant]
    model = build_model(config.model, width, 30522)
    params = abstract_params(model, batch_spec(config, width))
    assert sum(p.size for p in jax.tree.leaves(params)) == expected
    optimizer.make_optimizer(config.optimizer, params, config.train.steps)
    assert model.kind == ("vector" if variant == "tern" else "tokens")


@pytest.mark.parametrize(("name", "epoch"), [("coco", 14_160), ("flickr30k", 4_833)])
def test_published_schedules(name, epoch):
    config = importlib.import_module(f"configs.{name}").get_config()
    schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
    assert config.train.steps == 30 * epoch
    late = 10 * epoch
    assert schedule(late) == pytest.approx(1e-5)
    assert schedule(20 * epoch - 1) == pytest.approx(1e-5)
    assert schedule(20 * epoch) == pytest.approx(1e-6)
    first = {"coco": 1e-5, "flickr30k": 2e-8}[name]
    assert schedule(0) == pytest.approx(first)


def test_misspelt_fields_are_errors():
    config = common.get_config()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.optimizer.learning_rat = 1.0
    with pytest.raises(KeyError, match="marginn"):
        config.loss.update(marginn=0.1)


def test_unknown_variants_are_named():
    for name in ("coco", "demo"):
        with pytest.raises(ValueError, match="'big' is not known; use .*teran"):
            importlib.import_module(f"configs.{name}").get_config("big")
