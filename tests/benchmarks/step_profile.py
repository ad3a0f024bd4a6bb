"""Where the time of a training step goes: its parts alone, beside the whole step; JSON lines.

  python -m tests.benchmarks.step_profile
  python -m tests.benchmarks.step_profile --config=configs/coco.py:chan --batch_size=128

  images, text   an encoder forward and backward, with dropout
  scores         the hardest-negative loss of given embeddings, and its gradients by them
  optimiser      norm of the gradients, clipping, update of parameters and moments
  step           all of it as it is trained, in one program

For models that are scored by their alignment. Each line has the seconds and CPU seconds of a run
(medians; the parts take turns, so that other work on the machine meets all of them), the
FLOP that XLA counts, MiB of temporary memory, and the share of the parts' CPU seconds. Flags and
inputs are those of tests/benchmarks/train_step.py.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from tests.benchmarks.scorer import rounded, temporary
from tests.benchmarks.train_step import VOCABULARY, random_inputs
from xmodal_jax import losses, optimizer, train_state
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import IMAGE_FIELDS, TEXT_FIELDS, batch_spec
from xmodal_jax.models.scorers import pair_scorer
from xmodal_jax.objective import mined_hinge_loss
from xmodal_jax.ops.best_regions import best_region_scores
from xmodal_jax.train_step import make_train_step


def encoder(model: Any, method: str, fields: tuple[str, ...]) -> Callable[..., Any]:
    """(parameters, batch) -> gradients of the parameters."""

    def total(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        inputs = {name: batch[name] for name in fields if name in batch}
        rngs = {"dropout": jax.random.key(0)}
        out = model.apply({"params": params}, inputs, False, method=method, rngs=rngs)
        # Every number of the output has a slope of its own.
        return jnp.sum(jnp.square(out.tokens.astype(jnp.float32)) * jnp.cos(out.pooled)[:, None])

    return jax.grad(total)


def scores(model: Any, margin: float) -> Callable[..., Any]:
    """(images, captions) -> loss and gradients by their tokens, as `Objective` computes them."""
    mode, fill_zero = model.alignment

    def loss(tokens: tuple[jax.Array, jax.Array], images: Any, captions: Any) -> jax.Array:
        images, captions = images.replace(tokens=tokens[0]), captions.replace(tokens=tokens[1])
        fixed = jax.lax.stop_gradient((images, captions))
        found = best_region_scores(*fixed, mode=mode, fill_zero=fill_zero)
        positives = losses.positive_pairs(jnp.arange(found.shape[0]), "diagonal")
        return mined_hinge_loss(pair_scorer(model, {}), found, images, captions, positives, margin)

    return lambda images, captions: jax.value_and_grad(loss)(
        (images.tokens, captions.tokens), images, captions
    )


def update(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """(gradients, state of the optimiser, parameters) -> the next of both."""

    def run(grads: Any, opt_state: Any, params: Any) -> Any:
        norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, norm

    return run


def programs(config: Any, width: int) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Name -> compiled program, and a run of it that ends when its results are there."""
    model = build_model(config.model, width, VOCABULARY, 0)
    spec = batch_spec(config, width)
    abstract = train_state.abstract_params(model, spec)
    tx, _ = optimizer.make_optimizer(config.optimizer, abstract, config.train.steps)
    frozen = optimizer.frozen_mask(abstract, tuple(config.optimizer.frozen))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: here, train_state.abstract_state(abstract, tx))
    state = train_state.create_state(model, tx, spec, shardings, seed=0)
    sizes = config.train.batch_size, config.data.max_regions, config.data.max_tokens
    inputs = random_inputs(*sizes, width)
    batch = jax.device_put({name: inputs[name].astype(x.dtype) for name, x in spec.items()})
    encode = lambda params, batch: (
        model.apply({"params": params}, batch, method="encode_image"),
        model.apply({"params": params}, batch, method="encode_text"),
    )
    embeddings = jax.jit(encode)(state.params, batch)
    # One copy of the state: what replaces it is handed on to the next run.
    held = {"state": state}
    step = make_train_step(model, tx, config, frozen=frozen).lower(state, batch).compile()
    changing = jax.jit(update(tx), donate_argnums=(1, 2))
    changing = changing.lower(state.params, state.opt_state, state.params).compile()

    def run_step() -> Any:
        held["state"], metrics = step(held["state"], batch)
        return metrics

    def run_update() -> Any:
        old = held["state"]
        grads = jax.tree.map(jnp.zeros_like, old.params) if "grads" not in held else held["grads"]
        held["grads"] = grads
        params, opt_state, norm = changing(grads, old.opt_state, old.params)
        held["state"] = old.replace(params=params, opt_state=opt_state)
        return norm

    found = {}
    for name, method, fields in (
        ("images", "encode_image", IMAGE_FIELDS),
        ("text", "encode_text", TEXT_FIELDS),
    ):
        part = jax.jit(encoder(model, method, fields)).lower(state.params, batch).compile()
        found[name] = part, lambda part=part: part(held["state"].params, batch)
    part = jax.jit(scores(model, config.loss.margin)).lower(*embeddings).compile()
    found["scores"] = part, lambda part=part: part(*embeddings)
    return found | {"optimiser": (changing, run_update), "step": (step, run_step)}


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    given = flags.FLAGS
    config = given.config
    config.data.max_tokens, config.train.batch_size = given.tokens, given.batch_size
    config.model.text.pretrained = ""  # Random parameters take as long.
    device = jax.devices()[0].device_kind
    for dtype in given.dtypes:
        config.model.dtype = dtype
        parts = programs(config, given.feature_width)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
        for _ in range(1 + given.repeats):
            for name, (_, run) in parts.items():
                wall, busy = time.perf_counter(), time.process_time()
                jax.block_until_ready(run())
                seconds[name].append((time.perf_counter() - wall, time.process_time() - busy))
        # Without the first run, which warms up.
        medians = {
            name: [statistics.median(x) for x in zip(*runs[1:], strict=True)]
            for name, runs in seconds.items()
        }
        total = sum(cpu for name, (_, cpu) in medians.items() if name != "step")
        for name, (program, _) in parts.items():
            wall, cpu = medians[name]
            line = {"device": device, "dtype": dtype, "part": name, "seconds": wall}
            line |= {"cpu_seconds": cpu, "share": cpu / total}
            line |= {"flop": program.cost_analysis()["flops"], "temporary_mib": temporary(program)}
            print(json.dumps({k: rounded(v) for k, v in line.items()}), flush=True)


if __name__ == "__main__":
    app.run(main)
