"""Graphs over the regions of an image, and the step that passes region vectors along their edges.

The edge rule of CMSEI's spatial and semantic graphs is not published, so this file has the rules of
its relatives: CGMN (IoU), CMCAN (directions), GSMN (polar Gaussians), ReGAT (polar classes), and
relations from a scene-graph generator. Boxes are x1, y1, x2, y2 divided by width and height, with
the y of images (down). Angles and distances are thus those of a unit square: the aspect ratio is
lost, as in the published codes. Boxes are data: no gradient flows to them.
A masked region neither gathers nor is gathered from, and nothing is read from it: garbage, NaN
included, changes neither the graph nor any gradient.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from xmodal_jax.ops.embeddings import l2_normalize

# Smallest sigma^2 and tau^2 of a polar Gaussian, which training may drive through 0.
_MIN_VARIANCE = 1e-6


@flax.struct.dataclass
class DenseGraph:
    """Every possible edge. weights [B, K, R, R]: row i gathers from column j with label k."""

    weights: jax.Array


@flax.struct.dataclass
class EdgeList:
    """E edges an image: `target` gathers from `source`. All [B, E]; weight is 0 on padding."""

    target: jax.Array
    source: jax.Array
    label: jax.Array
    weight: jax.Array


def propagate(
    graph: DenseGraph | EdgeList,
    values: jax.Array,
    scale: jax.Array | None = None,
    shift: jax.Array | None = None,
) -> jax.Array:
    """Sums what each region gathers along its edges.

    Args:
      graph: graph over the R regions, with K labels.
      values: [B, R, D], one vector for each region. Regions without an outgoing edge aren't read.
      scale, shift: [K, D], what a label does to the vectors that it carries; None for nothing.

    Returns:
      out [B, R, D], out_i = sum over edges (i <- j, label k, weight a) of
      a (values_j (1 + scale_k) + shift_k). Sums are float32 at least; the dtype is that of values.
    """
    if isinstance(graph, DenseGraph):
        return _propagate_dense(graph, values, scale, shift).astype(values.dtype)
    return _propagate_edges(graph, values, scale, shift).astype(values.dtype)


def _gather(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Product [B, R, D] of weights [B, R, N] and values [B, N, D], accumulated in float32."""
    wide = jnp.promote_types(values.dtype, jnp.float32)
    weights = weights.astype(values.dtype)
    return jnp.einsum("brn,bnd->brd", weights, values, preferred_element_type=wide)


def _propagate_dense(
    graph: DenseGraph, values: jax.Array, scale: jax.Array | None, shift: jax.Array | None
) -> jax.Array:
    read = jnp.any(graph.weights != 0, axis=(1, 2))
    values = jnp.where(read[..., None], values, 0)  # 0 * NaN is NaN

    # Recomputed in the backward pass, which would otherwise keep [B, K, R, D].
    @jax.checkpoint
    def one_label(weights: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
        return _gather(weights, values) * (1 + scale[None, None])

    if scale is None:
        out = _gather(jnp.sum(graph.weights, 1), values)
    else:
        labels = zip(jnp.moveaxis(graph.weights, 1, 0), scale, strict=True)
        out = sum(one_label(weights, values, scale) for weights, scale in labels)
    if shift is not None:
        out = out + jnp.einsum("bkr,kd->brd", jnp.sum(graph.weights, -1), shift)
    return out


def _propagate_edges(
    graph: EdgeList, values: jax.Array, scale: jax.Array | None, shift: jax.Array | None
) -> jax.Array:
    messages = jnp.take_along_axis(values, graph.source[..., None], axis=1)
    messages = jnp.where(graph.weight[..., None] != 0, messages, 0)

    # One-hot products, for the gradient of a gather from few rows is a slow, unordered scatter.
    def of_label(table: jax.Array) -> jax.Array:
        return jax.nn.one_hot(graph.label, table.shape[0], dtype=table.dtype) @ table

    if scale is not None:
        messages = messages * (1 + of_label(scale))
    if shift is not None:
        messages = messages + of_label(shift)
    one_hot = jax.nn.one_hot(graph.target, values.shape[1], axis=1, dtype=graph.weight.dtype)
    return _gather(one_hot * graph.weight[:, None, :], messages.astype(values.dtype))


def _clean(boxes: jax.Array, mask: jax.Array) -> jax.Array:
    """Boxes [B, R, 4] in float32 at least, all 0 where masked, without gradient."""
    wide = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    return jax.lax.stop_gradient(jnp.where(mask[..., None], wide, 0))


def _pairs(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two bools [B, R, R]: both regions are valid; they are the same valid region."""
    pairs = mask[:, :, None] & mask[:, None, :]
    return pairs, pairs & jnp.eye(mask.shape[1], dtype=bool)[None]


def _towards(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """dx, dy [B, R, R] from the centre of box i to that of box j; y points up."""
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
    return x[:, None, :] - x[:, :, None], y[:, :, None] - y[:, None, :]


def _sector(dx: jax.Array, dy: jax.Array, start: float, count: int) -> jax.Array:
    """Index of the equal sector that the vector points into, counter-clockwise from `start`."""
    sector = (jnp.arctan2(dy, dx) - start) * (count / (2 * math.pi))
    # Boxes in one line point along a border, which belongs to the sector that it opens; the margin
    # keeps them there despite rounding. The remainder joins -pi and pi.
    return jnp.floor(sector + 1e-5).astype(jnp.int32) % count


def _iou(boxes: jax.Array) -> jax.Array:
    """Intersection over union [B, R, R]; 0 between boxes without area."""
    low = jnp.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = jnp.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    intersection = jnp.prod(jnp.maximum(high - low, 0), -1)
    area = jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1)
    union = area[:, :, None] + area[:, None, :] - intersection
    return intersection / jnp.where(union > 0, union, 1)


def iou_graph(
    boxes: jax.Array, mask: jax.Array, features: jax.Array, threshold: float = 0.4
) -> DenseGraph:
    """Overlapping regions, weighted by their likeness (CGMN, Cheng et al., TOMM 2022); K = 1.

    Args:
      boxes: [B, R, 4]; mask: [B, R] bool.
      features: [B, R, F]; the weight of an edge is the cosine of its two vectors, through which
        gradients flow. (The released CGMN divides twice by the norm of j.)
      threshold: lowest IoU of an edge. A region is always joined to itself, with weight 1.
    """
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    unit = l2_normalize(jnp.where(mask[..., None], features, 0))
    cosine = jnp.einsum("bif,bjf->bij", unit, unit)
    pairs, same = _pairs(mask)
    near = pairs & (_iou(_clean(boxes, mask)) >= threshold)
    weights = jnp.where(same, 1, jnp.where(near, cosine, 0))
    return DenseGraph(weights[:, None])


def directional_graph(boxes: jax.Array, mask: jax.Array, sectors: int = 4) -> DenseGraph:
    """The nearest region in every direction (CMCAN, Zhang et al., AAAI 2022); K = sectors + 1.

    Args:
      boxes: [B, R, 4]; mask: [B, R] bool.
      sectors: number of equal sectors of the angle i -> j, counter-clockwise from -3 pi / 4: of 4,
        below, right, above, left. In each, i gathers from the region of nearest centre (the first
        of equals) with weight 1. The last label is the self loop.
    """
    boxes = _clean(boxes, mask)
    pairs, same = _pairs(mask)
    dx, dy = _towards(boxes)
    sector = _sector(dx, dy, -3 * math.pi / 4, sectors)[:, None]
    here = (pairs & ~same)[:, None] & (sector == jnp.arange(sectors)[None, :, None, None])
    distance = jnp.where(here, (jnp.square(dx) + jnp.square(dy))[:, None], jnp.inf)
    nearest = jax.nn.one_hot(jnp.argmin(distance, -1), mask.shape[1], dtype=boxes.dtype)
    weights = jnp.where(here, nearest, 0)  # argmin of an empty sector is 0
    return DenseGraph(jnp.concatenate([weights, same[:, None].astype(boxes.dtype)], 1))


def polar_gaussian_graph(
    boxes: jax.Array,
    mask: jax.Array,
    mu: jax.Array,
    sigma: jax.Array,
    theta: jax.Array,
    tau: jax.Array,
) -> DenseGraph:
    """All pairs, shared among K Gaussians of distance and angle (GSMN, Liu et al., CVPR 2020).

    With rho and phi the polar coordinates of c_i - c_j, phi = atan2(dx, dy) (x first),
    w_k = exp(-(rho - mu_k)^2 / (2 sigma_k^2)) exp(-angle(phi, theta_k)^2 / (2 tau_k^2)),
    divided by the sum over the kernels, so that the labels of an edge sum to 1, not the edges of
    a region. The quotient is a softmax of the exponents, which no underflow makes 0 / 0.

    Args:
      boxes: [B, R, 4]; mask: [B, R] bool.
      mu, sigma, theta, tau: [K], learned. Only the squares of sigma and tau count, 1e-6 at least.
    """
    dx, dy = _towards(_clean(boxes, mask))
    mu, sigma, theta, tau = (p[None, :, None, None] for p in (mu, sigma, theta, tau))
    rho, phi = jnp.hypot(dx, dy)[:, None], jnp.arctan2(-dx, dy)[:, None]
    turn = jnp.mod(phi - theta + math.pi, 2 * math.pi) - math.pi
    exponent = -jnp.square(rho - mu) / (2 * jnp.maximum(jnp.square(sigma), _MIN_VARIANCE))
    exponent -= jnp.square(turn) / (2 * jnp.maximum(jnp.square(tau), _MIN_VARIANCE))
    pairs, _ = _pairs(mask)
    return DenseGraph(jnp.where(pairs[:, None], jax.nn.softmax(exponent, axis=1), 0))


def polar_classes_graph(boxes: jax.Array, mask: jax.Array) -> DenseGraph:
    """Classes of relative position (ReGAT, Li et al., ICCV 2019, after GCN-LSTM); binary, K = 12.

    Of boxes [B, R, 4] with mask [B, R] bool, an edge i <- j has the first label that holds:
    11 i is j; 0 box i lies strictly inside box j; 1 the reverse; 2 the IoU is at least 0.5; 3 to 10
    the octant of the angle i -> j, counter-clockwise from the right, if the centres are at most
    half the diagonal of the image apart. Otherwise there is no edge. The released ReGAT mixes up
    some octants; these are the true ones.
    """
    boxes = _clean(boxes, mask)
    pairs, same = _pairs(mask)
    dx, dy = _towards(boxes)
    low = boxes[:, :, None, :2] > boxes[:, None, :, :2]
    high = boxes[:, :, None, 2:] < boxes[:, None, :, 2:]
    inside = jnp.all(low & high, -1)
    near = jnp.hypot(dx, dy) / math.sqrt(2) <= 0.5
    cases = [~pairs, same, inside, jnp.swapaxes(inside, 1, 2), _iou(boxes) >= 0.5, near]
    label = jnp.select(cases, [-1, 11, 0, 1, 2, 3 + _sector(dx, dy, 0, 8)], -1)
    return DenseGraph(jax.nn.one_hot(label, 12, axis=1, dtype=boxes.dtype))


def _best(
    relations: jax.Array, scores: jax.Array, mask: jax.Array, threshold: float, top_k: int
) -> tuple[jax.Array, jax.Array]:
    """The top_k relations [B, top_k, 3] of each image, and which of them to keep [B, top_k]."""
    keep = mask & (scores >= threshold)
    if not 0 < top_k < scores.shape[1]:
        return relations, keep
    best = jnp.argsort(jnp.where(keep, -scores, jnp.inf))[:, :top_k]  # stable: the first of equals
    relations = jnp.take_along_axis(relations, best[..., None], axis=1)
    return relations, jnp.take_along_axis(keep, best, axis=1)


def relation_graph(
    relations: jax.Array,
    scores: jax.Array,
    mask: jax.Array,
    region_mask: jax.Array,
    *,
    threshold: float,
    top_k: int,
    num_predicates: int,
    labelled: bool,
) -> EdgeList:
    """Relations of a scene graph, walked in both directions, and self loops: 2N + R edges.

    Args:
      relations: [B, N, 3] i32: subject region, predicate, object region.
      scores: [B, N]; mask: [B, N] bool; region_mask: [B, R] bool.
      threshold: lowest score. top_k: how many relations of an image to keep, highest scores first;
        0 keeps all. Then, relations with an end that is not a valid region are dropped.
      num_predicates: P; with `labelled`, a predicate outside 0..P-1 drops its relation.
      labelled: True: (s, p, o) gives s <- o with label p and o <- s with label P + p, both of
        weight 1, and self loops have label 2P; K = 2P + 1. False: label 0 throughout and a binary
        adjacency: the copies of an edge share its weight of 1; K = 1.
    """
    relations, keep = _best(relations, scores, mask, threshold, top_k)
    ends, predicate = relations[..., ::2], relations[..., 1]
    regions = region_mask.shape[1]
    keep &= jnp.all((ends >= 0) & (ends < regions), -1)
    if labelled:
        keep &= (predicate >= 0) & (predicate < num_predicates)
    relations = jnp.where(keep[..., None], relations, 0).astype(jnp.int32)  # safe to index with
    subject, predicate, object_ = (relations[..., i] for i in range(3))
    for end in (subject, object_):
        keep &= jnp.take_along_axis(region_mask, end, axis=1)

    loop = jnp.broadcast_to(jnp.arange(regions, dtype=jnp.int32)[None], region_mask.shape)
    target = jnp.concatenate([subject, object_, loop], 1)
    source = jnp.concatenate([object_, subject, loop], 1)
    weight = jnp.concatenate([keep, keep, region_mask], 1).astype(jnp.float32)
    if labelled:
        loop_label = jnp.full_like(loop, 2 * num_predicates)
        label = jnp.concatenate([predicate, num_predicates + predicate, loop_label], 1)
        return EdgeList(target, source, label, weight)
    pair = target * regions + source
    copies = jnp.sum(weight[:, None, :] * (pair[:, :, None] == pair[:, None, :]), -1)
    return EdgeList(target, source, jnp.zeros_like(target), weight / jnp.maximum(copies, 1))
