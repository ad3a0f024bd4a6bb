"""Graph rules and propagation against python double loops over the edges of one image."""

from functools import partial
from itertools import product
from math import atan2, exp, floor, hypot, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xmodal_jax.ops import graphs
from xmodal_jax.ops.graphs import DenseGraph, EdgeList, propagate

B, R, D, K, P, N = 4, 9, 5, 3, 4, 12  # K kernels, P predicates, N relations
SEEDS = range(4)
KERNELS = ("mu", "sigma", "theta", "tau")


def random_case(seed):
    """Boxes of all sizes and masks with gaps, full and empty; relations with every fault."""
    rng = np.random.default_rng(seed)
    centre, half = rng.uniform(0.1, 0.9, (B, R, 2)), rng.uniform(0.01, 0.5, (B, R, 2)) ** 1.5
    boxes = np.clip(np.concatenate([centre - half, centre + half], -1), 0, 1)
    boxes[:, 1] = boxes[:, 0] + 0.01 * rng.uniform(-1, 1, (B, 4))
    mask = rng.random((B, R)) < 0.8
    mask[0], mask[-1] = True, False
    ends, predicate = rng.integers(-1, R + 1, (B, N, 2)), rng.integers(0, P + 1, (B, N))
    relations = np.stack([ends[..., 0], predicate, ends[..., 1]], -1)
    relations[:, :5] = [[2, 1, 3], [2, 1, 3], [3, 1, 2], [2, 0, 3], [4, 0, 4]]
    case = dict(boxes=boxes, mask=mask, relations=relations, scores=rng.integers(0, 6, (B, N)) / 5)
    case |= dict(relation_mask=rng.random((B, N)) < 0.8, values=rng.normal(size=(B, R, D)))
    case |= dict(zip(KERNELS, rng.uniform(0.2, 1, (4, K)) * [[1], [-1], [9], [1]], strict=True))
    return case | dict(features=rng.normal(size=(B, R, D)))


def loop_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = lambda c: (c[2] - c[0]) * (c[3] - c[1])
    return width * height / (area(a) + area(b) - width * height)


def offset(a, b):
    """From the centre of a to that of b, y down."""
    return (b[0] + b[2]) / 2 - (a[0] + a[2]) / 2, (b[1] + b[3]) / 2 - (a[1] + a[3]) / 2


def arrow(a, b):
    """Distance and angle in 0..2 pi with y up."""
    dx, dy = offset(a, b)
    return hypot(dx, dy), atan2(-dy, dx) % (2 * pi)


def loop_pairs(weights):
    """Edges (target, source, label, weight) of one image from the weights of each valid pair."""

    def edges(image):
        valid = np.flatnonzero(image["mask"]).tolist()
        for i, j in product(valid, valid):
            for label, weight in weights(i, j, image["boxes"], valid, image).items():
                yield i, j, label, weight

    return edges


def iou_weights(i, j, boxes, valid, image):
    f, g = image["features"][i], image["features"][j]
    cosine = f @ g / sqrt((f @ f) * (g @ g))
    return {0: 1.0 if i == j else cosine * (loop_iou(boxes[i], boxes[j]) >= 0.4)}


def directional_weights(i, j, boxes, valid, image, sectors):
    turn = lambda k: (arrow(boxes[i], boxes[k])[1] + 3 * pi / 4) % (2 * pi)
    sector = lambda k: floor(turn(k) / (2 * pi) * sectors)
    if i == j:
        return {sectors: 1.0}
    rivals = [k for k in valid if k != i and sector(k) == sector(j)]
    return {sector(j): float(j == min(rivals, key=lambda k: arrow(boxes[i], boxes[k])[0]))}


def gaussian_weights(i, j, boxes, valid, image):
    dx, dy = offset(boxes[j], boxes[i])
    weights = []
    for mu, sigma, theta, tau in zip(*(image[name] for name in KERNELS), strict=True):
        angle = min(abs(atan2(dx, dy) - theta + 2 * pi * turns) for turns in range(-3, 4))
        distance = hypot(dx, dy) - mu
        weights.append(exp(-(distance**2) / (2 * sigma**2)) * exp(-(angle**2) / (2 * tau**2)))
    return {k: w / sum(weights) for k, w in enumerate(weights)}


def class_weights(i, j, boxes, valid, image):
    a, b = boxes[i], boxes[j]
    within = lambda a, b: a[0] > b[0] and a[1] > b[1] and a[2] < b[2] and a[3] < b[3]
    distance, angle = arrow(a, b)
    if i == j:
        return {11: 1.0}
    if within(a, b):
        return {0: 1.0}
    if within(b, a):
        return {1: 1.0}
    if loop_iou(a, b) >= 0.5:
        return {2: 1.0}
    return {3 + int(angle // (pi / 4)): 1.0} if distance / sqrt(2) <= 0.5 else {}


def relation_edges(image, threshold, top_k, labelled):
    scores, valid = image["scores"], np.flatnonzero(image["mask"]).tolist()
    edges = [(r, r, 2 * P, 1.0) for r in valid]
    order = sorted(np.flatnonzero(image["relation_mask"]), key=lambda n: (-scores[n], n))
    for n in order[: top_k or N]:
        s, p, o = image["relations"][n].tolist()
        if scores[n] >= threshold and s in valid and o in valid and (p < P or not labelled):
            edges += [(s, o, p, 1.0), (o, s, P + p, 1.0)]
    return edges if labelled else [(t, s, 0, 1.0) for t, s in {e[:2] for e in edges}]


def gaussian_graph(case):
    return graphs.polar_gaussian_graph(case["boxes"], case["mask"], *(case[n] for n in KERNELS))


def relation_graph(case, **settings):
    arrays = (case[n] for n in ("relations", "scores", "relation_mask", "mask"))
    return graphs.relation_graph(*arrays, num_predicates=P, **settings)


# Graph of a case, edges of one image by loops, number of labels.
RULES = {
    "iou": (lambda c: graphs.iou_graph(c["boxes"], c["mask"], c["features"]), iou_weights, 1),
    "gaussian": (gaussian_graph, gaussian_weights, K),
    "classes": (lambda c: graphs.polar_classes_graph(c["boxes"], c["mask"]), class_weights, 12),
}
for n in (4, 8, 12):
    graph = lambda c, n=n: graphs.directional_graph(c["boxes"], c["mask"], n)
    RULES[f"directional-{n}"] = graph, partial(directional_weights, sectors=n), n + 1
RULES = {name: (graph, loop_pairs(loop), labels) for name, (graph, loop, labels) in RULES.items()}
for labelled, (threshold, top_k) in product((True, False), ((-1, 0), (0.4, 0), (0.4, 5), (-1, 5))):
    settings = dict(threshold=threshold, top_k=top_k, labelled=labelled)
    graph, loop = (partial(f, **settings) for f in (relation_graph, relation_edges))
    name = f"relations-{threshold}-{top_k}-" + ("labelled" if labelled else "binary")
    RULES[name] = graph, loop, 2 * P + 1 if labelled else 1
every_rule = pytest.mark.parametrize("rule", RULES)


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def image_of(case, b):
    return {name: x if name in KERNELS else x[b] for name, x in case.items()}


def accumulate(edges, labels):
    weights = np.zeros((labels, R, R))
    for target, source, label, weight in edges:
        weights[label, target, source] += weight
    return weights


def edges_of(graph, b):
    """Edges of image b of an EdgeList."""
    parts = (graph.target, graph.source, graph.label, graph.weight)
    return list(zip(*(np.asarray(x[b]).tolist() for x in parts), strict=True))


def dense_weights(graph, labels):
    if isinstance(graph, DenseGraph):
        return np.asarray(graph.weights)
    return np.stack([accumulate(edges_of(graph, b), labels) for b in range(B)])


@every_rule
def test_graph_equals_loops(rule, x64):
    build, loop, labels = RULES[rule]
    seen = np.zeros(labels)
    for seed in SEEDS:
        case = random_case(seed)
        expected = np.stack([accumulate(loop(image_of(case, b)), labels) for b in range(B)])
        ours = dense_weights(jax.jit(build)(as_jax(case)), labels)
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        seen += np.abs(expected).sum((0, 2, 3))
    assert np.all(seen > 0), "the cases miss a label"


def one_image(function, boxes, *args, **kwargs):
    """Weights [K, R, R] of one image whose regions are all valid."""
    mask = jnp.ones((1, len(boxes)), bool)
    return np.asarray(function(jnp.array([boxes]), mask, *args, **kwargs).weights[0])


def square(x, y, size=0.1):
    return [x - size / 2, y - size / 2, x + size / 2, y + size / 2]


def test_neighbours_by_hand():
    # Around the first: one below (the y of images is down), two to the right, one above.
    boxes = [square(*c) for c in ((0.5, 0.5), (0.5, 0.9), (0.7, 0.5), (0.8, 0.5), (0.5, 0.2))]
    ours = one_image(graphs.directional_graph, boxes)
    assert np.argwhere(ours[:4, 0]).tolist() == [[0, 1], [1, 2], [2, 4]]
    assert ours[3, 3].argmax() == 2  # to the left of the fourth, the third hides the first
    np.testing.assert_array_equal(ours[4], np.eye(5))
    classes = one_image(graphs.polar_classes_graph, boxes)
    assert classes[:, 0].argmax(0).tolist() == [11, 3 + 6, 3, 3, 3 + 2]


def test_vectors_along_borders_and_equal_distances():
    boxes = [square(*c) for c in ((0.5, 0.5), (0.75, 0.25), (0.25, 0.75), (0.25, 0.75))]
    ours = one_image(graphs.directional_graph, boxes)
    # pi/4 opens "above", -3pi/4 opens "below", the first of equals wins, no vector is "right".
    assert np.argwhere(ours[:4, 0]).tolist() == [[0, 2], [2, 1]]
    assert np.argwhere(ours[:4, 2]).tolist() == [[1, 3], [2, 0]]
    row = one_image(graphs.directional_graph, [square(0.3, 0.3), square(0.7, 0.3)], sectors=8)
    assert row[3, 0, 1] == row[7, 1, 0] == 1 and row[:8].sum() == 2


def test_classes_by_hand():
    # The second is inside the first; the third shares three sides with it; the last is far away.
    boxes = [[0.0, 0.0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2], [0.0, 0.0, 0.25, 0.5], square(0.9, 0.9)]
    ours = one_image(graphs.polar_classes_graph, boxes)
    assert ours[:, 0, :3].argmax(0).tolist() == [11, 1, 2]
    assert ours[:, :3, 0].argmax(0).tolist() == [11, 0, 2]
    assert not ours[:, 0, 3].any() and not ours[:, 3, 0].any()


def test_iou_threshold_is_inclusive():
    boxes = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.4, 1.0], 4 * [0.3], 4 * [0.6]]  # two are points
    ours = partial(one_image, graphs.iou_graph, boxes, jnp.ones((1, 4, 2)))
    expected = np.eye(4)
    expected[0, 1] = expected[1, 0] = 1
    np.testing.assert_allclose(ours()[0], expected, atol=1e-6)
    np.testing.assert_array_equal(ours(0.4001)[0], np.eye(4))
    np.testing.assert_allclose(ours(0.0), 1, atol=1e-6)


def test_gaussians_far_from_every_pair_share_it_with_finite_gradients():
    narrow = dict(sigma=jnp.array([1e-3, 0.0]), tau=jnp.array([0.0, -1e-3]))
    kernels = narrow | dict(mu=jnp.array([0.4, 0.9]), theta=jnp.array([0.0, 3.0]))
    boxes = jnp.array([[square(0.1, 0.1), square(0.1, 0.1), square(0.8, 0.3)]])

    def first(kernels):
        case = kernels | dict(boxes=boxes, mask=jnp.ones((1, 3), bool))
        weights = gaussian_graph(case).weights
        return jnp.sum(weights[0, 0]), weights

    grads, weights = jax.grad(first, has_aux=True)(kernels)
    np.testing.assert_allclose(jnp.sum(weights, 1), 1, atol=1e-6)
    assert all(np.isfinite(g).all() for g in grads.values())


def test_relations_by_hand():
    relations = jnp.array([[[0, 1, 1], [0, 1, 1], [1, 0, 2]]])  # 0 rides 1, twice; 1 has 2
    regions = jnp.array([[True, True, False]])
    build = partial(graphs.relation_graph, relations, jnp.ones((1, 3)), jnp.ones((1, 3), bool))
    build = partial(build, regions, threshold=0.5, top_k=0, num_predicates=2)
    kept = lambda graph: sorted(e for e in edges_of(graph, 0) if e[3])
    ride, loops = [(0, 1, 1, 1.0), (1, 0, 3, 1.0)], [(0, 0, 4, 1.0), (1, 1, 4, 1.0)]
    assert kept(build(labelled=True)) == sorted(ride + ride + loops)
    halves, loops = [(0, 1, 0, 0.5), (1, 0, 0, 0.5)], [(0, 0, 0, 1.0), (1, 1, 0, 1.0)]
    assert kept(build(labelled=False)) == sorted(halves + halves + loops)


def random_graph(seed, dense):
    """A graph with K labels and, for each image, its edges."""
    rng = np.random.default_rng(seed)
    if dense:
        weights = rng.normal(size=(B, K, R, R)) * (rng.random((B, K, R, R)) < 0.5)
        edges = [[(i, j, k, w) for (k, i, j), w in np.ndenumerate(image)] for image in weights]
        return DenseGraph(jnp.asarray(weights)), edges
    target, source, label = (rng.integers(0, high, (B, N)) for high in (R, R, K))
    weight = rng.normal(size=(B, N)) * (rng.random((B, N)) < 0.7)
    graph = EdgeList(*as_jax((target, source, label, weight)))
    return graph, [edges_of(graph, b) for b in range(B)]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("tables", ["", "scale", "shift", "scale shift"])
def test_propagate_equals_loops(dense, tables, x64):
    for seed in SEEDS:
        graph, edges = random_graph(seed, dense)
        values, rng = random_case(seed)["values"], np.random.default_rng(seed)
        scale, shift = (rng.normal(size=(K, D)) * (n in tables) for n in ("scale", "shift"))
        expected = np.zeros_like(values)
        for b in range(B):
            for i, j, k, weight in edges[b]:
                expected[b, i] += weight * (values[b, j] * (1 + scale[k]) + shift[k])
        given = {n: x for n, x in (("scale", scale), ("shift", shift)) if n in tables}
        ours = jax.jit(propagate)(graph, jnp.asarray(values), **as_jax(given))
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
def test_bfloat16_values_stay_so_and_labels_must_match(dense):
    graph, _ = random_graph(0, dense)
    values, scale = jnp.asarray(random_case(0)["values"], jnp.bfloat16), jnp.ones((K, D))
    ours = propagate(graph, values, scale, scale)
    assert ours.dtype == jnp.bfloat16
    exact = propagate(graph, values.astype(jnp.float32), scale, scale)
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=0.02, atol=0.1)
    if dense:  # the labels of a list are values, which jit does not see
        with pytest.raises(ValueError):
            propagate(graph, values, jnp.ones((K + 1, D)))


def loss_of(rule, case):
    """A random projection of what is propagated, as a function of the real-valued arrays."""
    build, _, labels = RULES[rule]
    rng = np.random.default_rng(0)
    scale, shift, target = (
        jnp.asarray(rng.normal(size=s)) for s in 2 * [(labels, D)] + [(B, R, D)]
    )
    real = {
        n: x for n, x in case.items() if n in ("boxes", "values", "features", "scores", *KERNELS)
    }
    real |= dict(scale=scale, shift=shift)
    out = lambda x: propagate(build(case | x), x["values"], x["scale"], x["shift"])
    return jax.jit(lambda x: jnp.sum(target * out(x))), real


@every_rule
def test_masked_entries_may_hold_anything(rule):
    case = random_case(1)
    mask, valid = case["mask"], case["relation_mask"]
    garbage = lambda x: np.resize([np.nan, np.inf, -1e30, -np.inf, 0.5], x.shape)
    names = ("boxes", "values", "features")
    dirty = {n: np.where(mask[..., None], case[n], garbage(case[n])) for n in names}
    dirty |= dict(scores=np.where(valid, case["scores"], garbage(valid)))
    dirty |= dict(relations=np.where(valid[..., None], case["relations"], -(2**31)))
    clean, ours = as_jax(case), as_jax(case | dirty)
    results = [jax.value_and_grad(f)(x) for f, x in (loss_of(rule, c) for c in (clean, ours))]
    jax.tree.map(np.testing.assert_array_equal, *results)
    grads = results[1][1]
    assert all(np.isfinite(g).all() for g in grads.values())
    assert not grads["boxes"].any() and not grads["scores"].any()
    assert not np.asarray(grads["values"])[~mask].any()
    used = dense_weights(RULES[rule][0](ours), RULES[rule][2]).any(1)
    assert not used[~mask].any() and not used.swapaxes(1, 2)[~mask].any()


@pytest.mark.parametrize("rule", ["iou", "gaussian", "classes", "relations-0.4-5-labelled"])
def test_gradients_equal_differences(rule, x64):
    loss, real = loss_of(rule, as_jax(random_case(2)))
    grads, rng = jax.grad(loss)(real), np.random.default_rng(3)
    learned = {"iou": {"features"}, "gaussian": set(KERNELS)}.get(rule, set())
    assert {n for n, g in grads.items() if g.any()} == learned | {"values", "scale", "shift"}
    for name in grads.keys() - {"boxes", "scores"}:
        along = jnp.asarray(rng.normal(size=real[name].shape))
        ahead, behind = (loss(real | {name: real[name] + s * along}) for s in (1e-6, -1e-6))
        slope = jnp.sum(grads[name] * along)
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


@every_rule
def test_order_of_regions_does_not_matter(rule, x64):
    build, _, labels = RULES[rule]
    case, order = random_case(3), np.random.default_rng(0).permutation(R)
    moved = {n: case[n][:, order] for n in ("boxes", "mask", "features", "values")}
    renamed = np.append(np.argsort(order), [R, -1])  # ends that were R or -1 stay outside
    relations = case["relations"].copy()
    relations[..., ::2] = renamed[relations[..., ::2]]
    before, after = build(as_jax(case)), build(as_jax(case | moved | dict(relations=relations)))
    expected = dense_weights(before, labels)[:, :, order][..., order]
    np.testing.assert_allclose(dense_weights(after, labels), expected, atol=1e-6)
    expected = propagate(before, jnp.asarray(case["values"]))[:, order]
    np.testing.assert_allclose(propagate(after, jnp.asarray(moved["values"])), expected, atol=1e-6)


@pytest.mark.parametrize("rule", ["iou", "gaussian", "directional-4", "relations-0.4-5-labelled"])
def test_a_sharded_batch_needs_no_communication(rule):
    build, _, labels = RULES[rule]
    case, mesh = as_jax(random_case(0)), Mesh(np.array(jax.devices()[:4]), ("data",))
    spec = lambda name: PartitionSpec() if name in KERNELS else PartitionSpec("data")
    sharded = {n: jax.device_put(x, NamedSharding(mesh, spec(n))) for n, x in case.items()}
    table = jnp.asarray(np.random.default_rng(0).normal(size=(labels, D)))
    step = jax.jit(lambda case: propagate(build(case), case["values"], table, table))
    np.testing.assert_allclose(step(sharded), step(case), atol=1e-5)
    program = step.lower(sharded).compile().as_text()
    assert not any(w in program for w in ("all-gather", "all-reduce", "all-to-all", "permute("))
