"""A whole training step of TERAN against the machine's limit and a PyTorch step; JSON lines.

  python -m tests.benchmarks.train_step
  python -m tests.benchmarks.train_step --batch_size=512 --dtypes=bfloat16 --repeats=10   # on a GPU

Random inputs and parameters of the sizes of --config; forward, backward, clipping and Adam, with
dropout and the hardest-negative loss over the whole batch. The PyTorch step has the same sizes
(nn.TransformerEncoder, eager, on a GPU by torch.compile; bfloat16 by autocast) and the loss as the
public code computes it, with expanded copies, or by einsum. Seconds are medians of --repeats steps
after two to warm up; FLOP are those that XLA counts in our step.
"""

import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from tests.benchmarks.scorer import (
    apart,
    einsum_scores,
    peak,
    reference_scores,
    rounded,
    temporary,
    torch_device,
    torch_hinge_loss,
)
from xmodal_jax import optimizer, train_state
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.train_step import make_train_step

VOCABULARY = 30522
_CONFIG = config_flags.DEFINE_config_file("config", "configs/coco.py:teran", "Configuration.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 40, "Images and captions of a batch.")
_TOKENS = flags.DEFINE_integer("tokens", 20, "Tokens a caption is padded to.")
_FEATURE_WIDTH = flags.DEFINE_integer("feature_width", 2048, "Width of the region features.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Steps of which the median is printed.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Of the computation: float32, bfloat16.")
_TORCH = flags.DEFINE_bool("torch", True, "Also the PyTorch step.")


def median_seconds(step: Callable[[], Any], repeats: int) -> float:
    """Of steps that wait for their end."""
    seconds = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def random_inputs(batch_size: int, regions: int, tokens: int, width: int) -> dict[str, np.ndarray]:
    """A batch as the input pipeline makes it, captions of 10 tokens and more."""
    rng = np.random.default_rng(0)
    mask = np.arange(tokens) < rng.integers(10, tokens + 1, (batch_size, 1))
    return {
        "regions": rng.standard_normal((batch_size, regions, width), np.float32).astype(np.float16),
        "boxes": np.tile(np.array([0.1, 0.2, 0.6, 0.7], np.float32), (batch_size, regions, 1)),
        "region_mask": np.ones((batch_size, regions), bool),
        "object_labels": np.zeros((batch_size, regions), np.int32),
        "tokens": (rng.integers(1000, VOCABULARY, mask.shape) * mask).astype(np.int32),
        "token_mask": mask,
        "image_id": np.arange(batch_size, dtype=np.int32),
        "caption_id": np.arange(batch_size, dtype=np.int32),
        "mask": np.ones(batch_size, bool),
    }


def ours(config: Any, width: int, repeats: int) -> dict[str, Any]:
    """Time, FLOP and memory of our step."""
    model = build_model(config.model, width, VOCABULARY, 0)
    spec = batch_spec(config, width)
    params = train_state.abstract_params(model, spec)
    tx, _ = optimizer.make_optimizer(config.optimizer, params, config.train.steps)
    frozen = optimizer.frozen_mask(params, tuple(config.optimizer.frozen))
    step = make_train_step(model, tx, config, frozen=frozen)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = train_state.abstract_state(params, tx)
    shardings = jax.tree.map(lambda _: here, abstract)
    state = train_state.create_state(model, tx, spec, shardings, seed=0)
    sizes = config.train.batch_size, config.data.max_regions, config.data.max_tokens
    inputs = random_inputs(*sizes, width)
    batch = jax.device_put({name: inputs[name].astype(x.dtype) for name, x in spec.items()})
    compiled = step.lower(state, batch).compile()
    current = [state]

    def run() -> None:
        current[0], metrics = compiled(current[0], batch)
        metrics["loss"].block_until_ready()

    count = sum(x.size for x in jax.tree.leaves(params))
    return {
        "seconds": median_seconds(run, repeats),
        "parameters": count,
        "flop": compiled.cost_analysis()["flops"],
        "temporary_mib": temporary(compiled),
    }


def torch_model(model: dict[str, Any], width: int) -> Any:
    """TERAN's encoders of these sizes: (regions, tokens, padding) -> unit vectors of both sides."""
    import torch
    from torch import nn

    def encoder(layers: int, size: int, heads: int, hidden: int, activation: str) -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            size, heads, hidden, model["dropout"], activation, batch_first=True
        )
        return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    class Encoders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            text, size = model["text"], model["embed_dim"]
            stack = functools.partial(
                encoder, heads=model["num_heads"], hidden=model["mlp_dim"], activation="relu"
            )
            self.boxes = nn.Linear(width + 5, width)
            self.regions = stack(model["region_layers"], width)
            self.project_image = nn.Linear(width, size)
            self.image_top = stack(model["top_layers"], size)
            self.words = nn.Embedding(VOCABULARY, text["width"])
            self.bert = encoder(
                text["num_layers"], text["width"], text["num_heads"], text["mlp_dim"], "gelu"
            )
            self.project_text = nn.Linear(text["width"], size)
            self.text_top = stack(model["top_layers"], size)

        def forward(self, regions: Any, tokens: Any, padding: Any) -> tuple[Any, Any]:
            geometry = regions.new_zeros((*regions.shape[:2], 5))
            image = self.regions(self.boxes(torch.cat([regions, geometry], -1)))
            image = self.image_top(self.project_image(image))
            text = self.bert(self.words(tokens), src_key_padding_mask=padding)
            text = self.text_top(self.project_text(text), src_key_padding_mask=padding)
            return tuple(nn.functional.normalize(x, dim=-1) for x in (image, text))

    return Encoders()


def theirs(
    model: dict[str, Any], sizes: tuple[int, int, int], width: int, repeats: int, **how: Any
) -> dict[str, Any]:
    """Time of the PyTorch step; how: whether the loss is expanded, all compiled, and in halves."""
    import torch

    device = torch_device()
    net = torch_model(model, width).to(device)
    count = sum(p.numel() for p in net.parameters())
    adam = torch.optim.Adam(net.parameters(), lr=1e-5)
    inputs = random_inputs(*sizes, width)
    regions = torch.from_numpy(inputs["regions"].astype(np.float32)).to(device)
    tokens = torch.from_numpy(inputs["tokens"].astype(np.int64)).to(device)
    mask = torch.from_numpy(inputs["token_mask"]).to(device)
    scores = reference_scores if how["expanded"] else einsum_scores

    def loss() -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=how["half"]):
            image, text = net(regions, tokens, ~mask)
            found = scores(image, text, mask).float()
        return torch_hinge_loss(found)

    forward = torch.compile(loss) if how["compiled"] else loss

    def run() -> None:
        adam.zero_grad()
        forward().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        adam.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {"seconds": median_seconds(run, repeats), "parameters": count}


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    config = _CONFIG.value
    config.data.max_tokens, config.train.batch_size = _TOKENS.value, _BATCH_SIZE.value
    config.model.text.pretrained = ""  # Random parameters take as long.
    width, repeats = _FEATURE_WIDTH.value, _REPEATS.value
    device = jax.devices()[0].device_kind
    on_gpu = jax.default_backend() == "gpu"
    show = lambda **line: print(
        json.dumps({k: rounded(v) for k, v in ({"device": device} | line).items()}), flush=True
    )
    sizes = config.train.batch_size, config.data.max_regions, config.data.max_tokens
    for dtype in _DTYPES.value:
        limit = peak(dtype, 16384 if on_gpu else 4096, 3)
        show(what="peak", dtype=dtype, flop_per_second=limit)
        config.model.dtype = dtype
        found = ours(config, width, repeats)
        speed = found["flop"] / found["seconds"]
        show(what="ours", dtype=dtype, **found, flop_per_second=speed, share_of_peak=speed / limit)
        if not _TORCH.value:
            continue
        others = []
        for expanded in (True, False):
            how = {"expanded": expanded, "compiled": on_gpu, "half": dtype == "bfloat16"}
            work = functools.partial(theirs, **how)
            line = apart(work, config.model.to_dict(), sizes, width, repeats)
            others.append(line["seconds"])
            show(what="torch", dtype=dtype, loss="expanded" if expanded else "einsum", **line)
        target = 3 if on_gpu else 1.3
        expanded, einsum = (other / found["seconds"] for other in others)
        show(ratio="s of torch with the public code's loss / ours", value=expanded, target=target)
        show(ratio="s of torch with einsum / ours", value=einsum)


if __name__ == "__main__":
    app.run(main)
