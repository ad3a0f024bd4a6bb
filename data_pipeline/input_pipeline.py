"""Batches of numpy arrays from a dataset: endless shuffled ones to train, ordered ones to evaluate.

The position in the training stream is (seed, epoch, step) and nothing else: whoever starts at step
k gets what an uninterrupted run gets from step k on. tf.data reads and shuffles serialized records,
`decoding` copies their arrays into the batch, and a thread makes a batch while the one before it is
used. Keys of a batch, with B rows, R regions of width F, W tokens:

    regions        f16 [B, R, F]   zero padded        tokens       i32 [B, W]
    boxes          f32 [B, R, 4]   in 0..1            token_mask   bool [B, W]
    region_mask    bool [B, R]                        image_id     i64 [B]    below 2^31
    object_labels  i32 [B, R]      -1 where absent    caption_id   i64 [B]
    mask           bool [B]        False on filler rows, which only evaluation has

and with max_relations = E > 0, of the relations among these regions, the E most confident ones:
sorted by descending confidence, then padding, which is 0 wherever the mask is False:

    relations        i32 [B, E, 3]  subject region, predicate, object region
    relation_scores  f32 [B, E]     confidence
    relation_mask    bool [B, E]

`caption_id` is the running number of a caption in its split, in `index` order, in training too.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds

from data_pipeline.decoding import batch_images, filled, make_decoder
from data_pipeline.drawn_captions import drawn_captions
from data_pipeline.errors import DataError
from data_pipeline.reading import CAPTION_FIELDS, in_order, read
from data_pipeline.region_captions import split_info
from data_pipeline.streams import only_rows, rows_of_streams, shuffled_stream
from data_pipeline.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]

_IMAGE_FIELDS = ("image_id", "regions", "boxes", "object_labels")
_RELATION_FIELDS = ("relations", "relation_scores")


def steps_per_epoch(
    builder: tfds.core.DatasetBuilder, split: str, batch_size: int, streams: int = 1
) -> int:
    """Whole batches in a pass over the split; DataError where there is none."""
    count = split_info(builder, split).num_examples
    if not 1 <= batch_size <= count:
        raise DataError(
            f"batch_size={batch_size} does not fit split {split!r} of {builder.info.full_name}, "
            f"which has {count} images; use 1 to {count}"
        )
    if not 1 <= streams <= batch_size or batch_size % streams:
        raise DataError(
            f"streams={streams} do not divide batch_size={batch_size}; use a divisor, such as "
            f"{math.gcd(max(streams, 1), batch_size)}"
        )
    return count // streams // (batch_size // streams)


def train_batches(
    builder: tfds.core.DatasetBuilder,
    *,
    split: str,
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    start_step: int,
    max_regions: int,
    max_tokens: int,
    rows: np.ndarray | None = None,
    streams: int = 1,
    shuffle_buffer: int = 4096,
    max_relations: int = 0,
    token_widths: Sequence[int] = (),
) -> Iterator[Batch]:
    """Endless training batches, one caption drawn an image; a function of the arguments alone.

    Every epoch is shuffled anew and drops the remainder. In n successive epochs an image with n
    captions shows each of them once.

    Args:
        batch_size: rows of the global batch.
        start_step: number of batches to skip.
        max_regions: R; images with more regions lose the last ones (the best come first).
        max_tokens: W, special tokens included.
        rows: int [n], ascending; the rows of the global batch that are yielded, all if None. A
            global batch has the same images however many processes share it.
        streams: independent parts in which an epoch is read, a divisor of batch_size; a process
            opens the files of those that its rows come from. See `streams.py`.
        shuffle_buffer: records, still serialized, among which the next one is drawn.
        max_relations: E; 0 for batches without relations.
        token_widths: smaller widths of tokens; larger ones do not count. A batch gets the smallest
            one, max_tokens among them, that holds its longest caption. With `rows` it is always
            max_tokens: the captions of the other rows are not known, and all have one width.
    """
    widths = _checked_widths(token_widths, max_tokens)
    if rows is None:
        rows = np.arange(batch_size)
    elif len(rows) < batch_size:
        widths = (max_tokens,)
    if not len(rows) or rows[0] < 0 or rows[-1] >= batch_size or (np.diff(rows) < 1).any():
        raise DataError(
            f"rows={rows} are not some of 0..{batch_size - 1} in ascending order; those that a "
            "process holds are partitioning.local_rows(mesh, batch_size)"
        )
    steps = steps_per_epoch(builder, split, batch_size, streams)
    shares = rows_of_streams(rows, batch_size, streams)
    info = split_info(builder, split)
    decode = make_decoder(builder, (*_image_fields(max_relations), *CAPTION_FIELDS))

    def epochs() -> Iterator[Batch]:
        epoch, first = divmod(start_step, steps)
        while True:
            truncated = 0
            parts = []
            for number, wanted in shares.items():
                size = len(wanted)
                records = shuffled_stream(
                    info, number, seed=seed, epoch=epoch, streams=streams, buffer=shuffle_buffer
                )
                records = records.take(steps * size).skip(first * size)
                mine = read(only_rows(records, wanted), builder, split)
                parts.append((mine, int(wanted.sum())))
            decoded = map(decode, _in_turn(parts, steps - first))
            for batch in batch_images(decoded, len(rows), max_regions, max_relations):
                batch, cut = _with_drawn_caption(batch, tokenizer, widths, seed, epoch)
                truncated += cut
                yield batch
            _report_truncated(truncated, f"a pass over {split!r}", max_tokens)
            epoch, first = epoch + 1, 0

    return _ahead(epochs())


def image_batches(
    builder: tfds.core.DatasetBuilder,
    *,
    split: str,
    batch_size: int,
    max_regions: int,
    max_relations: int = 0,
) -> Iterator[Batch]:
    """Every image once, in `index` order: the image half of a batch, with `mask`.

    The last batch is filled up with copies of its last image, whose mask is False.
    """
    records = in_order(builder, split, _image_fields(max_relations))
    return _ahead(batch_images(records, batch_size, max_regions, max_relations))


def caption_batches(
    builder: tfds.core.DatasetBuilder,
    *,
    split: str,
    tokenizer: Tokenizer,
    batch_size: int,
    max_tokens: int,
) -> Iterator[Batch]:
    """Every caption once, in order: tokens, token_mask, image_id, caption_id, mask, and

    caption_number i64 [B], which of its image's captions it is, and offsets i32 [B, W, 2], the
    characters of every token. Filled up like `image_batches`.
    """
    rows = (
        (record["image_id"], record["first_caption"] + number, number, caption.decode("utf-8"))
        for record in in_order(builder, split, CAPTION_FIELDS)
        for number, caption in enumerate(record["captions"])
    )
    truncated = yield from _tokenized(rows, tokenizer, batch_size, max_tokens)
    _report_truncated(truncated, repr(split), max_tokens)


def text_batches(
    texts: Sequence[str],
    image_ids: np.ndarray,
    *,
    tokenizer: Tokenizer,
    batch_size: int,
    max_tokens: int,
) -> Iterator[Batch]:
    """Any texts as `caption_batches` makes them, each of an image; numbered as they come."""
    ids = image_ids.tolist()
    rows = ((ids[k], k, 0, text) for k, text in enumerate(texts))
    yield from _tokenized(rows, tokenizer, batch_size, max_tokens)


def _tokenized(
    rows: Iterator[tuple[int, int, int, str]],
    tokenizer: Tokenizer,
    batch_size: int,
    max_tokens: int,
) -> Generator[Batch, None, int]:
    """Batches of image_id, caption_id, caption_number and text; returns how many were cut."""
    truncated = 0
    while group := list(islice(rows, batch_size)):
        *numbers, captions = zip(*group, strict=True)
        encoded = tokenizer.encode(captions, max_tokens)
        truncated += encoded.truncated
        names = ("image_id", "caption_id", "caption_number")
        batch = dict(zip(names, np.array(numbers, np.int64), strict=True))
        batch |= {"tokens": encoded.ids, "token_mask": encoded.mask, "offsets": encoded.offsets}
        yield filled(batch, batch_size)
    return truncated


def _image_fields(max_relations: int) -> tuple[str, ...]:
    """What is read of a record for the image half of a batch."""
    if max_relations < 0:
        raise DataError(f"max_relations={max_relations} is negative; use 0 for none")
    return _IMAGE_FIELDS + (_RELATION_FIELDS if max_relations else ())


def _in_turn(streams: list[tuple[Iterator[bytes], int]], turns: int) -> Iterator[bytes]:
    """In every turn so many records of each stream."""
    for _ in range(turns):
        for records, count in streams:
            yield from islice(records, count)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each made by a thread while the caller still has the one before it."""
    thread = ThreadPoolExecutor(1)
    try:
        made = thread.submit(next, batches, None)
        while (batch := made.result()) is not None:
            made = thread.submit(next, batches, None)
            yield batch
    finally:
        thread.shutdown(wait=False)


def _checked_widths(token_widths: Sequence[int], max_tokens: int) -> tuple[int, ...]:
    """All widths that a batch's tokens may have, ascending; the last one is max_tokens."""
    for width in token_widths:
        if width < 3:
            raise DataError(
                f"token_widths={tuple(token_widths)} has {width}, which leaves no room for a word "
                "between [CLS] and [SEP]; use 3 or more"
            )
    return tuple(sorted({*(w for w in token_widths if w < max_tokens), max_tokens}))


def _with_drawn_caption(
    batch: dict[str, Any], tokenizer: Tokenizer, widths: tuple[int, ...], seed: int, epoch: int
) -> tuple[Batch, int]:
    """The batch with one caption an image, tokenised, and how many captions were cut."""
    captions = batch.pop("captions")
    counts = np.array([len(texts) for texts in captions])
    drawn = drawn_captions(batch["image_id"], counts, seed=seed, epoch=epoch)
    shown = [texts[k].decode("utf-8") for texts, k in zip(captions, drawn, strict=True)]
    encoded = tokenizer.encode(shown, widths[-1])
    longest = encoded.mask.sum(axis=1).max()
    width = next(width for width in widths if width >= longest)
    batch |= {
        "tokens": encoded.ids[:, :width],
        "token_mask": encoded.mask[:, :width],
        "caption_id": batch.pop("first_caption") + drawn,
    }
    return batch, encoded.truncated


_reported: set[str] = set()


def _report_truncated(count: int, what: str, max_tokens: int) -> None:
    """Warns of captions that were cut, once for each kind of pass over a split."""
    if count and what not in _reported:
        _reported.add(what)
        absl.logging.warning(
            "%d captions in %s are longer than max_tokens=%d and lose their end",
            count,
            what,
            max_tokens,
        )
