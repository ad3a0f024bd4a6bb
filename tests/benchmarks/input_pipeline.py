"""Speed of the input pipeline, warm from the page cache; one JSON line for every measurement.

  python -m tests.benchmarks.input_pipeline
  python -m tests.benchmarks.input_pipeline --cores 2 --examples 500 --dir /tmp/records

It writes its own data (36 regions 2048 wide, boxes, labels and 5 captions an image) and measures:

  plain          tf.data.TFRecordDataset over our files, in batches, nothing decoded: the yardstick
  images         image_batches: read, decoded, padded, batched
  train          train_batches, one epoch: shuffled too, captions drawn and tokenised
  reference      the loader of TERAN: a compressed .npz and a .npy an image, collated
  read ENCODING  tf.data with tf.io.parse_example over records with their arrays as
  write ENCODING   raw     little-endian bytes, float16 regions (ours)
                   gzip    the same in files compressed by TFRecord itself
                   tensor  bytes of tf.io.serialize_tensor, float16
                   floats  lists of float32
  data_wait      share of time in next(train_batches) of a loop round a step of --step_ms

mb is what lies on disk; CPU seconds are those of all threads. All of it is repeated --repeats times
in turn and the median printed, with the load of the machine: where other programs run, CPU seconds
mean more than speed. Two of the ratios at the end have targets. Every number of --cores has a
process of its own, so that thread pools have the size of its processors.
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipeline.input_pipeline import image_batches, train_batches
from data_pipeline.region_captions import schema
from data_pipeline.tokenizer import WordTokenizer

REGIONS, WIDTH, CAPTIONS, SHARDS, MAX_TOKENS = 36, 2048, 5, 8, 32
WORDS = [f"word{number}" for number in range(2000)]
_TURNS = 8  # Passes over the short files of other encodings that are one measurement.
Arrays = dict[str, Any]


def images(count: int) -> Iterator[Arrays]:
    """Made-up images: regions float32 [36, 2048], boxes float32 [36, 4], ids and captions."""
    rng = np.random.default_rng(0)
    for index in range(count):
        lengths = rng.integers(6, 16, CAPTIONS)
        yield {
            "index": index,
            "regions": np.maximum(rng.standard_normal((REGIONS, WIDTH), np.float32) + 0.5, 0),
            "boxes": rng.uniform(size=(REGIONS, 4)).astype(np.float32),
            "object_labels": rng.integers(0, 80, REGIONS, np.int32),
            "captions": [" ".join(rng.choice(WORDS, n)).encode() for n in lengths],
        }


def _bytes(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _integer(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _floats(array: np.ndarray) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=array.ravel()))


def _tensor(array: np.ndarray) -> tf.train.Feature:
    return _bytes(tf.io.serialize_tensor(array).numpy())


_ENCODERS: dict[str, Callable[[np.ndarray], tf.train.Feature]] = {
    "raw": lambda array: _bytes(array.tobytes()),
    "gzip": lambda array: _bytes(array.tobytes()),
    "tensor": _tensor,
    "floats": _floats,
}


def serialized(image: Arrays, encoding: str) -> bytes:
    """A record with the features of the project's schema, its regions and boxes encoded so."""
    regions = image["regions"].astype(np.float32 if encoding == "floats" else np.float16)
    feature = {
        "image_id": _integer(image["index"]),
        "index": _integer(image["index"]),
        "first_caption": _integer(CAPTIONS * image["index"]),
        "file_name": _bytes(b""),
        "size": _bytes(np.array([640, 480], np.int32).tobytes()),
        "regions": _ENCODERS[encoding](regions),
        "boxes": _ENCODERS[encoding](image["boxes"]),
        "object_labels": _bytes(image["object_labels"].tobytes()),
        "relations": _bytes(b""),
        "relation_scores": _bytes(b""),
        "captions": _bytes(*image["captions"]),
        "links": _bytes(b""),
    }
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def write_dataset(directory: Path, count: int) -> None:
    """Our records as a TFDS dataset in eight files, unless it is there."""
    if (directory / "dataset_info.json").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        dataset_name="region_captions",
        split="train",
        filetype_suffix="tfrecord",
    )
    lengths = [len(part) for part in np.array_split(np.arange(count), SHARDS)]
    source = images(count)
    for number, length in enumerate(lengths):
        path = template.sharded_filepath(shard_index=number, num_shards=SHARDS)
        with tf.io.TFRecordWriter(os.fspath(path)) as writer:
            for image in itertools.islice(source, length):
                writer.write(serialized(image, "raw"))
    size = sum(path.stat().st_size for path in directory.iterdir())
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=lengths, num_bytes=size, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=os.fspath(directory), features=schema(WIDTH), split_infos=[split]
    )


def write_encoded(path: Path, encoding: str, source: list[Arrays]) -> None:
    """One file of records in another encoding."""
    options = tf.io.TFRecordOptions(compression_type="GZIP" if encoding == "gzip" else "")
    with tf.io.TFRecordWriter(os.fspath(path), options) as writer:
        for image in source:
            writer.write(serialized(image, encoding))


def encoded_batches(path: Path, encoding: str, batch_size: int) -> tf.data.Dataset:
    """Regions and boxes of such a file, read `_TURNS` times over, by tf.data alone."""
    compression = "GZIP" if encoding == "gzip" else ""
    records = tf.data.TFRecordDataset([os.fspath(path)] * _TURNS, compression_type=compression)
    shapes = {"regions": (REGIONS, WIDTH), "boxes": (REGIONS, 4)}
    dtypes = {"regions": tf.float16, "boxes": tf.float32}
    if encoding == "floats":
        lists = {name: tf.io.FixedLenFeature(shape, tf.float32) for name, shape in shapes.items()}
        batches = records.batch(batch_size).map(lambda batch: tf.io.parse_example(batch, lists))
        return batches.prefetch(2)
    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in shapes}
    if encoding == "tensor":  # A tensor is parsed by itself, not in a batch.
        tensor = lambda raw, name: tf.ensure_shape(
            tf.io.parse_tensor(raw, dtypes[name]), shapes[name]
        )
        parse = lambda record: tf.io.parse_single_example(record, spec)
        fields = records.map(lambda r: {name: tensor(raw, name) for name, raw in parse(r).items()})
        return fields.batch(batch_size).prefetch(2)
    array = lambda raw, name: tf.reshape(tf.io.decode_raw(raw, dtypes[name]), (-1, *shapes[name]))
    parse = lambda batch: tf.io.parse_example(batch, spec)
    batches = records.batch(batch_size)
    batches = batches.map(lambda b: {name: array(raw, name) for name, raw in parse(b).items()})
    return batches.prefetch(2)


def write_reference(directory: Path, source: list[Arrays]) -> list[Path]:
    """The reference's files: bu_att/ID.npz with `feat`, float32, and bu_box/ID.npy, pixels."""
    written = []
    for name in ("bu_att", "bu_box"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for image in source:
        regions, boxes = (directory / f"bu_{n}" / f"{image['index']}" for n in ("att", "box"))
        np.savez_compressed(regions, feat=image["regions"])
        np.save(boxes, image["boxes"] * [640, 480, 640, 480])
        written += [regions.with_suffix(".npz"), boxes.with_suffix(".npy")]
    return written


def read_reference(directory: Path, count: int, batch_size: int) -> None:
    """The reference's loader: files one by one, then padded with zeros to float32 batches."""
    for start in range(0, count, batch_size):
        loaded = []
        for index in range(start, min(start + batch_size, count)):
            with np.load(directory / "bu_att" / f"{index}.npz") as arrays:
                regions = arrays["feat"]
            boxes = np.load(directory / "bu_box" / f"{index}.npy") / np.tile([640, 480], 2)
            loaded.append((regions, boxes.astype(np.float32)))
        longest = max(len(regions) for regions, _ in loaded)
        batch = np.zeros((len(loaded), longest, WIDTH), np.float32)
        boxes = np.zeros((len(loaded), longest, 4), np.float32)
        for row, (regions, box) in enumerate(loaded):
            batch[row, : len(regions)], boxes[row, : len(box)] = regions, box


@dataclasses.dataclass
class Case:
    """Something to measure: `run` goes over so many examples of files, or of a share of them."""

    run: Callable[[], object]
    examples: int
    paths: list[Path]
    share: float = 1.0
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)

    def measure(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.run()
        self.seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)

    def line(self) -> dict[str, float]:
        """Medians; the first pass was to warm up."""
        seconds, cpu_seconds = map(statistics.median, (self.seconds[1:], self.cpu_seconds[1:]))
        size = self.share * sum(path.stat().st_size for path in self.paths) / 1e6
        return {
            "examples_per_second": round(self.examples / seconds, 1),
            "mb_per_second": round(size / seconds, 1),
            "cpu_seconds_per_1000": round(1000 * cpu_seconds / self.examples, 4),
            "mb": round(size, 2),
        }

    def ratios(self, other: "Case") -> tuple[float, float]:
        """Seconds and CPU seconds an example takes here, over those that it takes there.

        Medians over pairs of neighbouring passes: what else the machine does changes slowly.
        """
        pairs = (self.seconds, other.seconds), (self.cpu_seconds, other.cpu_seconds)
        wall, cpu = (
            statistics.median(a / b for a, b in zip(mine[1:], theirs[1:], strict=True))
            for mine, theirs in pairs
        )
        factor = other.examples / self.examples
        return wall * factor, cpu * factor


def cases(directory: Path, args: argparse.Namespace) -> dict[str, Case]:
    """All that is measured in turn; the files are written, but for those of other encodings."""
    dataset, reference = directory / f"images_{args.examples}", directory / "reference"
    source = list(images(args.slow_examples))
    write_dataset(dataset, args.examples)
    builder = tfds.builder_from_directory(os.fspath(dataset))
    files = sorted(dataset.glob("*.tfrecord-*"))
    names = [os.fspath(path) for path in files]
    steps = args.examples // args.batch_size
    train = functools.partial(training_batches, builder, args.batch_size)
    found = {
        "plain": Case(
            lambda: exhaust(tf.data.TFRecordDataset(names).batch(args.batch_size)),
            args.examples,
            files,
        ),
        "images": Case(
            lambda: exhaust(
                image_batches(
                    builder, split="train", batch_size=args.batch_size, max_regions=REGIONS
                )
            ),
            args.examples,
            files,
        ),
        "train": Case(
            lambda: exhaust(itertools.islice(train(), steps)),
            steps * args.batch_size,
            files,
            steps * args.batch_size / args.examples,
        ),
        "reference": Case(
            lambda: read_reference(reference, len(source), args.batch_size),
            len(source),
            write_reference(reference, source),
        ),
    }
    for encoding in _ENCODERS:
        path = directory / f"{encoding}.tfrecord"
        write = functools.partial(write_encoded, path, encoding, source)
        batches = encoded_batches(path, encoding, args.batch_size)
        found[f"write {encoding}"] = Case(write, len(source), [path])
        found[f"read {encoding}"] = Case(
            functools.partial(exhaust, batches), _TURNS * len(source), [path] * _TURNS
        )
    return found


def training_batches(
    builder: Any, batch_size: int, shuffle_buffer: int = 4096
) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of the benchmark's data."""
    return train_batches(
        builder,
        split="train",
        tokenizer=WordTokenizer(WORDS),
        batch_size=batch_size,
        seed=0,
        start_step=0,
        max_regions=REGIONS,
        max_tokens=MAX_TOKENS,
        shuffle_buffer=shuffle_buffer,
    )


def exhaust(values: Iterable[object]) -> None:
    """Goes over all of them."""
    collections.deque(values, maxlen=0)


def data_wait(batches: Iterator[object], step_ms: float, steps: int) -> float:
    """Share of the time that a training loop, one step ahead of its device, waits for data."""
    step = dummy_step(step_ms)
    next(batches)
    waited, running, began = 0.0, step(), time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        dispatched = step()
        running.block_until_ready()
        running = dispatched
    return waited / (time.perf_counter() - began)


def dummy_step(milliseconds: float) -> Callable[[], jax.Array]:
    """A jitted computation that takes about so long on the idle machine."""
    turns = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ x), x))
    start = jnp.eye(256)
    turns(start, 1).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        turns(start, 20).block_until_ready()
        times.append(time.perf_counter() - began)
    count = max(1, round(20 * milliseconds / 1000 / min(times)))
    return lambda: turns(start, count)


def measure(cores: int, directory: Path, args: argparse.Namespace) -> None:
    """Measures and prints; in a process that has so many processors."""
    show = lambda **line: print(json.dumps({"cores": cores, **line}), flush=True)
    found = cases(directory, args)
    for _ in range(args.repeats + 1):
        for case in found.values():
            case.measure()
    for name, case in found.items():
        show(what=name, **case.line(), load=round(os.getloadavg()[0], 1))
    builder = tfds.builder_from_directory(os.fspath(directory / f"images_{args.examples}"))
    # A small buffer: filled once in a long epoch, it does not count here either.
    batches = training_batches(builder, args.batch_size, shuffle_buffer=args.batch_size)
    shares = [data_wait(batches, args.step_ms, args.steps) for _ in range(args.repeats)]
    show(what="data_wait", step_ms=args.step_ms, share=round(statistics.median(shares), 4))
    for name, target in (("images", {"target": 0.6}), ("train", {})):
        wall, cpu = (round(ratio, 2) for ratio in found["plain"].ratios(found[name]))
        show(ratio=f"speed of {name} / plain", value=wall, by_cpu_seconds=cpu, **target)
    _, cpu = found["reference"].ratios(found["images"])
    show(ratio="CPU seconds of reference / images", value=round(cpu, 1), target=3)


def main() -> None:
    """Starts a process for every number of cores, one after another."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.input_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    integer = functools.partial(parser.add_argument, type=int)
    integer("--cores", nargs="+", default=[1, 2], help="processors to measure with (1 2)")
    integer("--examples", default=2000, help="images (2000; 150 kB each)")
    integer("--slow-examples", default=128, help="images for the reference and encodings (128)")
    integer("--batch-size", default=128, help="images of a batch (128)")
    integer("--repeats", default=5, help="passes of which the median is printed (5)")
    integer("--step-ms", default=100, help="length of the step for data_wait (100)")
    integer("--steps", default=30, help="steps for data_wait (30)")
    parser.add_argument("--dir", help="where to keep the data, and find it again (a temporary one)")
    args = parser.parse_args()
    processors = sorted(os.sched_getaffinity(0))
    if not 1 <= min(args.cores) <= max(args.cores) <= len(processors):
        parser.error(f"--cores {max(args.cores)}: this process may use 1 to {len(processors)}")
    if args.examples < args.batch_size:
        parser.error(f"--examples {args.examples} is less than a batch of {args.batch_size}")
    with tempfile.TemporaryDirectory() as temporary:
        for cores in args.cores:
            # Inherited by the process and all of its threads.
            os.sched_setaffinity(0, processors[:cores])
            arguments = (cores, Path(args.dir or temporary), args)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
