"""The alignment scorer against the machine's limit and the reference's way; JSON lines.

  python -m tests.benchmarks.scorer
  python -m tests.benchmarks.scorer --images=200 --captions=1000      # a minute

  peak          the fastest of some matrix products, large and square or of the scorer's own shape:
                what the machine can do
  evaluate      every image with every caption, packed, as an evaluation does it (ops/packing.py)
  reference     the same as the public code of TERAN does it, in PyTorch: expanded to all pairs,
                masked with 0, maximum, sum, captions padded to 88; one image with all captions, and
                then, for the other direction, 5 captions with all images; scaled to all
  train         hardest-negative loss of a batch and its gradients: mined (at most 3 B pairs with a
                gradient, objective.py), all (every pair with one, ops/best_regions.py), pairs (the
                same by ops/alignment.py, which computes similarities twice), torch (einsum),
                reference
  memory        temporary memory of the mined loss for a batch of 4,096, compiled and not run

Embeddings are random unit vectors, 36 regions an image, captions of about 11.5 words as in COCO.
FLOP are those of real words: 2 x images x regions x words x width, three times as many with
gradients of all pairs. Times are medians of --repeats runs after a warm-up; every ratio is of one
run. On a GPU everything runs there; CPU seconds then say nothing.
"""

import argparse
import functools
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax import losses
from xmodal_jax.objective import mined_hinge_loss
from xmodal_jax.ops import packing
from xmodal_jax.ops.alignment import alignment_score, score_matrix
from xmodal_jax.ops.best_regions import best_region_scores
from xmodal_jax.ops.embeddings import Embeddings

REGIONS, WORDS, WIDTH, MARGIN = 36, 32, 1024, 0.2
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_PADDED = 88  # Words that the public code pads the captions of COCO to.
Line = dict[str, Any]
SCORE = functools.partial(alignment_score, mode="MrSw")


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 vectors of length 1."""
    x = rng.standard_normal(shape, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def caption_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Words a caption, as in COCO: mean 11.5, few of more than 20."""
    return np.clip(np.round(8 + rng.gamma(2.2, 1.6, count)), 5, WORDS).astype(int)


def measure(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds and CPU seconds of a run, after one to warm up."""
    jax.block_until_ready(run())
    seconds, cpu = [], []
    for _ in range(repeats):
        wall, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - busy)
    return statistics.median(seconds), statistics.median(cpu)


def peak(dtype: str, size: int, repeats: int) -> float:
    """FLOP/s of the fastest product with sums in float32."""
    product = jax.jit(lambda x, y: jnp.dot(x, y, preferred_element_type=jnp.float32))
    found = []
    for rows, inner, columns in ((size,) * 3, (size, WIDTH, packing.BLOCK), (size, WIDTH, size)):
        x = jnp.ones((rows, inner), DTYPES[dtype])
        y = jnp.ones((inner, columns), DTYPES[dtype])
        # Long enough for the clock.
        times = max(1, round(1e11 / (2 * rows * inner * columns)))
        run = functools.partial(repeated, product, x, y, times)
        found.append(2 * rows * inner * columns * times / measure(run, repeats)[0])
    return max(found)


def repeated(function: Callable[..., Any], x: Any, y: Any, times: int) -> list[Any]:
    return [function(x, y) for _ in range(times)]


def evaluate(args: argparse.Namespace, dtype: str) -> tuple[Line, np.ndarray]:
    """All scores of a split, and those of its first block of images."""
    rng = np.random.default_rng(0)
    lengths = caption_lengths(rng, args.captions)
    mask = np.arange(WORDS) < lengths[:, None]
    parts = (
        (unit(rng, len(part), WORDS, WIDTH).astype(DTYPES[dtype]), part)
        for part in np.array_split(mask, max(1, args.captions // 100))
    )
    blocks = [(jax.tree.map(jnp.asarray, block), n) for block, n in packing.pack_captions(parts)]
    regions = unit(rng, args.images, REGIONS, WIDTH).astype(DTYPES[dtype])
    everywhere = jnp.ones((args.block, REGIONS), bool)
    images = [
        Embeddings(jnp.asarray(regions[start : start + args.block]), everywhere, None)
        for start in range(0, args.images, args.block)
    ]

    def row(block: Embeddings) -> np.ndarray:
        parts = [packing.packed_scores(block, captions, "MrSw") for captions, _ in blocks]
        return np.concatenate(
            [np.asarray(x)[:, :n] for x, (_, n) in zip(parts, blocks, strict=True)], 1
        )

    first = row(images[0])
    seconds, cpu = measure(lambda: [row(block) for block in images], args.repeats)
    flop = 2 * args.images * REGIONS * int(lengths.sum()) * WIDTH
    line = {"seconds": seconds, "cpu_seconds": cpu, "flop_per_second": flop / seconds}
    return line | {"words_a_caption": float(lengths.mean())}, first


def torch_device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def reference_scores(images: Any, captions: Any, mask: Any) -> Any:
    """[I, C] as the public code computes them: [I, C, R, W] from expanded copies, masked with 0."""
    count, others = images.shape[0], captions.shape[0]
    left = images.unsqueeze(1).expand(-1, others, -1, -1)
    right = captions.unsqueeze(0).expand(count, -1, -1, -1)
    similar = left.matmul(right.transpose(2, 3))
    similar = similar.masked_fill(~mask[None, :, None, :], 0)
    return similar.max(2)[0].sum(2)


def einsum_scores(images: Any, captions: Any, mask: Any) -> Any:
    """[I, C] as a good user of PyTorch writes them."""
    import torch

    similar = torch.einsum("ird,cwd->icrw", images, captions)
    return similar.amax(2).masked_fill(~mask[None], 0).sum(2)


def torch_hinge_loss(scores: Any) -> Any:
    """Of the hardest negatives in [B, B], as the public code computes it."""
    import torch

    own, same = scores.diagonal(), torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    by_image = (MARGIN + scores - own[:, None]).clamp(min=0).masked_fill(same, 0)
    by_caption = (MARGIN + scores - own[None, :]).clamp(min=0).masked_fill(same, 0)
    return by_image.max(1)[0].sum() + by_caption.max(0)[0].sum()


def torch_inputs(images: int, captions: int, words: int = WORDS) -> list[Any]:
    import torch

    rng = np.random.default_rng(0)
    mask = np.arange(words) < caption_lengths(rng, captions)[:, None]
    arrays = unit(rng, images, REGIONS, WIDTH), unit(rng, captions, words, WIDTH), mask
    return [torch.from_numpy(x).to(torch_device()) for x in arrays]


def timed_torch(run: Callable[[], Any], repeats: int) -> Line:
    import torch

    def finished() -> None:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    seconds, cpu = measure(finished, repeats)
    return {"seconds": seconds, "cpu_seconds": cpu}


def reference(args: argparse.Namespace) -> Line:
    """All scores of the split in both directions, scaled from one query of each."""
    import torch

    total = {"seconds": 0.0, "cpu_seconds": 0.0}
    for images, captions, queries in (
        (1, args.captions, args.images),
        (args.images, 5, args.captions / 5),
    ):
        inputs = torch_inputs(images, captions, _PADDED)
        with torch.no_grad():
            line = timed_torch(functools.partial(reference_scores, *inputs), args.repeats)
        total = {name: value + queries * line[name] for name, value in total.items()}
    return total


def train_torch(batch: int, scores: Callable[..., Any], repeats: int) -> Line:
    """Hardest-negative loss and gradients in PyTorch, in this process; its peak memory, too."""
    import torch

    images, captions, mask = torch_inputs(batch, batch)

    def run() -> None:
        left, right = (x.detach().requires_grad_() for x in (images, captions))
        torch_hinge_loss(scores(left, right, mask)).backward()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = timed_torch(run, repeats)
    if torch.cuda.is_available():
        grown = torch.cuda.max_memory_allocated()
    else:
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    # At least 1: a small batch fits into what the process already has.
    return line | {"temporary_mib": max(1, round(grown / 2**20))}


def mined_loss(images: Embeddings, captions: Embeddings) -> jax.Array:
    """The loss that training chooses, of a scorer without parameters."""
    positives = jnp.eye(images.mask.shape[0], dtype=bool)
    fixed = best_region_scores(*jax.lax.stop_gradient((images, captions)), mode="MrSw")
    return mined_hinge_loss(SCORE, fixed, images, captions, positives, MARGIN)


def all_pairs_loss(images: Embeddings, captions: Embeddings) -> jax.Array:
    """The same loss with a gradient through every pair."""
    positives = jnp.eye(images.mask.shape[0], dtype=bool)
    scores = best_region_scores(images, captions, mode="MrSw")
    return losses.hinge_loss(scores, positives, margin=MARGIN)


def by_pairs_loss(images: Embeddings, captions: Embeddings) -> jax.Array:
    """The same from the scorer of a pair."""
    positives = jnp.eye(images.mask.shape[0], dtype=bool)
    return losses.hinge_loss(score_matrix(SCORE, images, captions), positives, margin=MARGIN)


def compiled_step(loss: Callable[..., jax.Array], batch: int, dtype: str) -> Any:
    """The compiled function (tokens, mask of images, and of captions) -> loss and gradients."""

    def run(regions: jax.Array, region_mask: jax.Array, words: jax.Array, mask: jax.Array) -> Any:
        value = lambda regions, words: loss(
            Embeddings(regions, region_mask, regions[:, 0]), Embeddings(words, mask, words[:, 0])
        )
        return jax.value_and_grad(value, argnums=(0, 1))(regions, words)

    shape = lambda n, dtype, *width: jax.ShapeDtypeStruct((batch, n, *width), dtype)
    both = [
        x
        for n in (REGIONS, WORDS)
        for x in (shape(n, DTYPES[dtype], WIDTH), shape(n, jnp.dtype(bool)))
    ]
    return jax.jit(run).lower(*both).compile()


def train(args: argparse.Namespace, loss: Callable[..., jax.Array], dtype: str) -> Line:
    """Time and memory of a batch's loss and gradients."""
    rng = np.random.default_rng(0)
    mask = np.arange(WORDS) < caption_lengths(rng, args.batch)[:, None]
    regions, words = (
        unit(rng, args.batch, n, WIDTH).astype(DTYPES[dtype]) for n in (REGIONS, WORDS)
    )
    inputs = [jnp.asarray(x) for x in (regions, np.ones((args.batch, REGIONS), bool), words, mask)]
    step = compiled_step(loss, args.batch, dtype)
    seconds, cpu = measure(lambda: step(*inputs), args.repeats)
    return {"seconds": seconds, "cpu_seconds": cpu, "temporary_mib": temporary(step)}


def temporary(compiled: Any) -> int:
    """MiB of temporary memory of a compiled program."""
    return round(compiled.memory_analysis().temp_size_in_bytes / 2**20)


def apart(function: Callable[..., Line], *arguments: Any) -> Line:
    """The result of a function that runs in a process of its own: peak memory is of it alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.scorer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    integer = functools.partial(parser.add_argument, type=int)
    integer("--images", default=1000, help="of the evaluation (1000)")
    integer("--captions", default=5000, help="of the evaluation (5000)")
    integer("--block", default=100, help="images scored at once (100); divides --images")
    integer("--batch", default=128, help="of the training loss (128)")
    integer("--peak-size", default=4096, help="side of the matrices (4096)")
    integer("--repeats", default=3, help="runs of which the median is printed (3)")
    args = parser.parse_args()
    if args.images % args.block:
        parser.error(f"--block {args.block} does not divide --images {args.images}")
    device = jax.devices()[0].device_kind
    show = lambda **line: print(
        json.dumps({k: rounded(v) for k, v in ({"device": device} | line).items()}), flush=True
    )
    limits, evaluated, first = {}, {}, {}
    for dtype in DTYPES:
        limits[dtype] = peak(dtype, args.peak_size, args.repeats)
        show(what="peak", dtype=dtype, flop_per_second=limits[dtype])
    for dtype in DTYPES:
        evaluated[dtype], first[dtype] = evaluate(args, dtype)
        share = evaluated[dtype]["flop_per_second"] / limits[dtype]
        show(what="evaluate", dtype=dtype, **evaluated[dtype], share_of_peak=share)
    theirs = apart(reference, args)
    show(what="reference", **theirs)
    mined = {dtype: train(args, mined_loss, dtype) for dtype in DTYPES}
    for dtype, line in mined.items():
        show(what="train mined", dtype=dtype, **line)
    for name, loss in (("all", all_pairs_loss), ("pairs", by_pairs_loss)):
        for dtype in DTYPES:
            show(what=f"train {name}", dtype=dtype, **train(args, loss, dtype))
    einsum = apart(train_torch, args.batch, einsum_scores, args.repeats)
    show(what="train torch", **einsum)
    expanded = apart(train_torch, args.batch, reference_scores, args.repeats)
    show(what="train reference", **expanded)
    full = temporary(compiled_step(mined_loss, 4096, "float32"))
    show(what="memory", batch=4096, temporary_mib=full, target_mib=8192)

    ours, fast = evaluated["float32"], evaluated["bfloat16"]
    share = ours["flop_per_second"] / limits["float32"]
    step = mined["float32"]
    ratio = lambda name, value, target: show(ratio=name, value=value, target=target)
    ratio("evaluate: CPU s of reference / ours", theirs["cpu_seconds"] / ours["cpu_seconds"], 60)
    ratio("evaluate: share of the float32 peak", share, 0.75)
    ratio("evaluate: s of float32 / bfloat16", ours["seconds"] / fast["seconds"], 1.5)
    difference = float(np.abs(first["float32"] - first["bfloat16"]).max())
    ratio("evaluate: largest difference of bfloat16 scores", difference, "below 0.002")
    ratio("train: s of reference / mined", expanded["seconds"] / step["seconds"], 10)
    ratio("train: s of torch einsum / mined", einsum["seconds"] / step["seconds"], 2)
    used = step["temporary_mib"] / expanded["temporary_mib"]
    ratio("train: temporary memory of mined / reference", used, "below 0.05")


if __name__ == "__main__":
    main()
