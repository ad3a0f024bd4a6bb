"""Models a few numbers wide with batches for them, and steps of training on any mesh."""

import jax
import numpy as np

from configs import demo
from xmodal_jax import optimizer, partitioning, train_state
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.train_step import make_train_step

VOCABULARY, WIDTH, PREDICATES = 30, 8, 3
REGIONS, WORDS = 5, 8  # the longest of a batch


def tiny_config(variant, **changes):
    """The demo's configuration of a model, a few numbers wide."""
    config = demo.get_config(variant)
    model = config.model
    model.embed_dim = 8
    model.text.width = 8
    if model.text.encoder == "bert":
        model.text.update(num_layers=1, num_heads=2, mlp_dim=8)
    if model.name == "teran":
        model.update(region_layers=1, num_heads=2, mlp_dim=8)
    small = {"num_layers": 1, "num_steps": 2, "num_heads": 2, "mlp_dim": 8, "width": 6}
    for part in ("reasoning", "similarity"):
        section = model.get(part, {})
        section.update({name: size for name, size in small.items() if name in section})
    config.data.update(max_regions=REGIONS, max_tokens=WORDS)
    if config.data.max_relations:
        config.data.max_relations = 4
    config.train.update(batch_size=8, steps=3)
    config.optimizer.update(learning_rate=1e-2, schedule="constant", warmup_steps=0)
    config.update_from_flattened_dict(changes)
    return config


def random_batch(config, seed=0):
    """Valid inputs with regions, words and relations of several counts, zero padded."""
    rng = np.random.default_rng(seed)
    rows = config.train.batch_size
    region_mask = np.arange(REGIONS) < rng.integers(2, REGIONS + 1, (rows, 1))
    # Two words at least: alone, a word has CMSEI's guidance divide each number by its own size.
    token_mask = np.arange(WORDS) < rng.integers(4, WORDS + 1, (rows, 1))
    corners = rng.uniform(0, 0.5, (rows, REGIONS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.5, corners.shape)], -1)
    features = rng.normal(size=(rows, REGIONS, WIDTH))
    batch = {
        "regions": (features * region_mask[..., None]).astype(np.float32),
        "boxes": (boxes * region_mask[..., None]).astype(np.float32),
        "region_mask": region_mask,
        "object_labels": np.where(region_mask, 0, -1).astype(np.int32),
        "tokens": (rng.integers(3, VOCABULARY, (rows, WORDS)) * token_mask).astype(np.int32),
        "token_mask": token_mask,
        "image_id": np.arange(rows, dtype=np.int32),
        "caption_id": np.arange(rows, dtype=np.int32),
        "mask": np.ones(rows, bool),
    }
    if edges := config.data.max_relations:
        ends = rng.integers(0, 2, (2, rows, edges))  # of the two regions that all images have
        triples = np.stack([ends[0], rng.integers(0, PREDICATES, (rows, edges)), ends[1]], -1)
        batch["relations"] = triples.astype(np.int32)
        batch["relation_scores"] = rng.uniform(0.1, 1, (rows, edges)).astype(np.float32)
        batch["relation_mask"] = np.arange(edges) < rng.integers(0, edges + 1, (rows, 1))
    return batch


def build(config):
    return build_model(config.model, WIDTH, VOCABULARY, PREDICATES)


def one_device_mesh():
    axes = ("data", "model")
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((1, 1), axes, devices=jax.devices()[:1], axis_types=types)


def abstract_state(config):
    """Model, optimiser and the shapes of the state."""
    model = build(config)
    params = train_state.abstract_params(model, batch_spec(config, WIDTH))
    tx, _ = optimizer.make_optimizer(config.optimizer, params, 3)
    return model, tx, train_state.abstract_state(params, tx)


def run_steps(config, mesh, rules=(), steps=3):
    """Metrics of each step, and the state after the last; every step has a batch of its own.

    `gradients` of the first step are among its metrics: Adam's first moments, which are a tenth of
    them then.
    """
    model, tx, abstract = abstract_state(config)
    shardings = partitioning.shardings(abstract, rules, mesh)
    spec = batch_spec(config, WIDTH)
    state = train_state.create_state(model, tx, spec, shardings, seed=0)
    frozen = optimizer.frozen_mask(abstract.params, ())
    step = make_train_step(model, tx, config, frozen=frozen, mesh=mesh)
    found = []
    for seed in range(steps):
        batch = partitioning.put_batch(random_batch(config, seed), mesh)
        state, metrics = step(state, batch)
        found.append(jax.device_get(metrics))
        if seed == 0:
            leaves = jax.tree.leaves_with_path(state.opt_state)
            first = [x for path, x in leaves if ".mu" in jax.tree_util.keystr(path)]
            found[0]["gradients"] = np.concatenate([x.ravel() for x in partitioning.fetch(first)])
    return found, state


def first_step(config, mesh):
    """Metrics, and the optimiser's moments, which after one step are the gradients, scaled."""
    (metrics,), state = run_steps(config, mesh, steps=1)
    return metrics, jax.device_get(state.opt_state)
