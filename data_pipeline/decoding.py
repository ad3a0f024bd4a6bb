"""Serialized records to padded tensors, a batch at a time, inside tf.data.

The parser follows from the features that are stored with the dataset. Relations are cut together
with regions: one that names a region cut away makes room for the next best and is no part of the
batch. To batch one more array of the schema, name it and give it a `_dense` of its own.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

Fields = dict[str, Any]  # Tensors by name.


def make_parser(
    features: tfds.features.FeaturesDict,
    names: tuple[str, ...],
    max_regions: int = 0,
    max_relations: int = 0,
) -> Callable[[tf.Tensor], Fields]:
    """A function from [B] serialized records to the named fields, parsed by the stored features.

    Text and single numbers come as they are, the arrays of regions padded to max_regions, those of
    relations to max_relations.
    """
    spec = {}
    for name, info in features.get_serialized_info().items():
        if name in names:
            spec[name] = (
                tf.io.RaggedFeature(info.tf_dtype, row_splits_dtype=tf.int64)
                if info.shape == (None,)
                else tf.io.FixedLenFeature([], info.tf_dtype)
            )

    def parse(serialized: tf.Tensor) -> Fields:
        fields = tf.io.parse_example(serialized, spec)
        if "captions" in fields:
            fields["caption_count"] = fields["captions"].row_lengths()
            fields["captions"] = fields["captions"].flat_values
        if "regions" in fields:
            fields |= _padded_regions(fields, features, max_regions)
        if "relations" in fields:
            fields |= _best_relations(fields, features, max_regions, max_relations)
        return fields

    return parse


def _padded_regions(fields: Fields, features: Any, max_regions: int) -> Fields:
    regions, region_mask = _dense(fields["regions"], features["regions"], max_regions)
    boxes, _ = _dense(fields["boxes"], features["boxes"], max_regions)
    labels, labelled = _dense(fields["object_labels"], features["object_labels"], max_regions)
    return {
        "regions": regions,
        "region_mask": region_mask,
        "boxes": boxes,
        "object_labels": tf.where(labelled, labels, -1),
    }


def _best_relations(fields: Fields, features: Any, max_regions: int, max_relations: int) -> Fields:
    """The most confident relations among the regions kept, zero padded: True comes first."""
    raw, feature = fields["relations"], features["relations"]
    longest = tf.reduce_max(tf.strings.length(raw)) // (3 * feature.tf_dtype.size)
    # All of them first: which ones count is known only when they are decoded.
    rows = tf.maximum(longest, max_relations)
    relations, real = _dense(raw, feature, rows)
    scores, _ = _dense(fields["relation_scores"], features["relation_scores"], rows)
    kept = real & tf.reduce_all(relations[..., ::2] < max_regions, axis=-1)
    # Of equals the first: in a sorted record, the first ones kept. Older datasets may be unsorted.
    order = tf.math.top_k(tf.where(kept, scores, -math.inf), max_relations).indices
    mask = tf.gather(kept, order, batch_dims=1)
    return {
        "relations": tf.where(mask[..., None], tf.gather(relations, order, batch_dims=1), 0),
        "relation_scores": tf.where(mask, tf.gather(scores, order, batch_dims=1), 0.0),
        "relation_mask": mask,
    }


def _dense(raw: tf.Tensor, feature: Any, rows: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """[B] byte strings, arrays [n, ...] of any n, as one [B, rows, ...] and its mask [B, rows].

    Longer arrays are cut and shorter ones zero padded, by decode_raw itself.
    """
    inner, dtype = feature.shape[1:], feature.tf_dtype
    row_bytes = math.prod(inner) * dtype.size
    # There is no padding kernel for float16, but one for integers of its size.
    stored = tf.uint16 if dtype == tf.float16 else dtype
    values = tf.bitcast(tf.io.decode_raw(raw, stored, fixed_length=rows * row_bytes), dtype)
    mask = tf.sequence_mask(tf.minimum(tf.strings.length(raw) // row_bytes, rows), rows)
    return tf.reshape(values, (-1, rows, *inner)), mask


def caption_fields(fields: Fields) -> Fields:
    """Fields of images as fields of captions, an image's captions one after the other."""
    numbers = tf.ragged.range(fields["caption_count"])
    image = numbers.value_rowids()
    return {
        "captions": fields["captions"],
        "caption_number": numbers.flat_values,
        "caption_id": tf.gather(fields["first_caption"], image) + numbers.flat_values,
        "image_id": tf.gather(fields["image_id"], image),
    }
