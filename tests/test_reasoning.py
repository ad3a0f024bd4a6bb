"""Reasoning over regions, and their projection, against loops over the edges of one image.

The edges of each rule are those of the loops in test_graphs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.oracles import dense, unit
from tests.test_graphs import (
    KERNELS,
    B,
    D,
    K,
    P,
    R,
    class_weights,
    directional_weights,
    gaussian_weights,
    image_of,
    iou_weights,
    loop_pairs,
    random_case,
    random_graph,
    relation_edges,
)
from xmodal_jax.errors import UserError
from xmodal_jax.models.image import PROJECTIONS, RegionProjection
from xmodal_jax.models.reasoning import (
    MERGES,
    SEMANTIC,
    SPATIAL,
    AffinityReasoning,
    GraphConv,
    GraphReasoning,
    TransformerReasoning,
)

SPATIAL_LOOPS = {
    "iou": loop_pairs(iou_weights),
    "directional": loop_pairs(partial(directional_weights, sectors=4)),
    "polar-gaussian": loop_pairs(gaussian_weights),
    "polar-classes": loop_pairs(class_weights),
}
THRESHOLD, TOP_K = 0.4, 5
MASK = random_case(0)["mask"]


def reasoning(spatial, semantic, merge="mean"):
    return GraphReasoning(
        spatial,
        semantic,
        merge,
        relation_threshold=THRESHOLD,
        relation_top_k=TOP_K,
        num_predicates=P,
        dtype=jnp.float64,
    )


def batch_of(case):
    names = dict(boxes="boxes", relations="relations", relation_mask="relation_mask")
    names["relation_scores"] = "scores"
    return {name: jnp.asarray(case[source]) for name, source in names.items()}


def build(module, case, relations=True):
    """The jitted module (params, x, boxes) over the regions of a case, and random parameters."""
    batch, mask = batch_of(case), jnp.asarray(case["mask"])
    if not relations:
        batch = {"boxes": batch["boxes"]}
    call = lambda p, x, boxes: module.apply({"params": p}, x, mask, {**batch, "boxes": boxes}, True)
    params = oracles.random_params(module, jnp.asarray(case["values"]), mask, batch, True)
    if "mu" in (kernels := params.get("spatial", {})):
        for name in KERNELS:  # narrow ones make the loops' quotient 0 / 0
            kernels[name] = 0.3 + jnp.abs(kernels[name])
    return jax.jit(call), params


def run(module, case, relations=True):
    call, params = build(module, case, relations)
    return params, np.asarray(call(params, jnp.asarray(case["values"]), jnp.asarray(case["boxes"])))


def loop_conv(p, x, edges):
    """One graph convolution over edges (target, source, label, weight); x [R, D]."""
    gathered = np.zeros_like(x)
    for target, source, label, weight in edges:
        message = dense(p["message"], x[source])
        if "label_scale" in p:
            message = message * (1 + np.asarray(p["label_scale"][label]))
            message = message + np.asarray(p["label_embedding"][label])
        gathered[target] += weight * message
    normed = [oracles.layer_norm(p["norm"], dense(p["out"], row)) for row in gathered]
    return x + np.array(normed)


def loop_reasoning(p, image, spatial, semantic, merge, layers=2):
    x, outputs = image["values"], []

    def convolve(x, name, edges):
        for i in range(layers):
            x = loop_conv(p[f"{name}_{i}"], x, edges)
        return x

    if spatial != "none":
        kernels = {name: np.asarray(x) for name, x in p.get("spatial", {}).items()}
        edges = SPATIAL_LOOPS[spatial](image | kernels | {"features": x})
        outputs.append(convolve(x, "spatial", list(edges)))
    if semantic != "none":
        start = outputs.pop() if merge == "chain" and outputs else x
        edges = relation_edges(image, THRESHOLD, TOP_K, semantic == "predicates")
        outputs.append(convolve(start, "semantic", edges))
    if not outputs:
        return x
    merged = outputs[0]
    if len(outputs) == 2:
        gate = 0.5
        if merge == "gate":
            gate = oracles.sigmoid(dense(p["gate"], np.concatenate(outputs, 1)))
        merged = gate * outputs[0] + (1 - gate) * outputs[1]
    return np.array([unit(row) for row in merged])


def assert_valid_rows_equal(ours, case, loop):
    # The weights of relations are float32.
    for b in range(B):
        valid = case["mask"][b]
        expected = loop({n: x for n, x in image_of(case, b).items() if n not in KERNELS})
        np.testing.assert_allclose(ours[b][valid], expected[valid], atol=1e-6)


@pytest.mark.parametrize("graph_kind", ["dense", "edges"])
@pytest.mark.parametrize("labels", [1, K])
def test_graph_convolution_equals_loops_and_starts_as_identity(graph_kind, labels, x64):
    graph, edges = random_graph(0, graph_kind == "dense")
    x, module = jnp.asarray(random_case(0)["values"]), GraphConv(labels, jnp.float64)
    params = oracles.random_params(module, x, graph)
    ours = jax.jit(module.apply)({"params": params}, x, graph)
    for b in range(B):
        np.testing.assert_allclose(
            ours[b], loop_conv(params, np.asarray(x[b]), edges[b]), atol=1e-9
        )

    start = jax.jit(module.init)(jax.random.key(0), x, graph)
    out = lambda variables: module.apply(variables, x, graph)
    np.testing.assert_array_equal(jax.jit(out)(start), x)
    grad = jax.jit(jax.grad(lambda v: jnp.sum(out(v) ** 2)))(start)["params"]
    assert np.any(grad["norm"]["scale"]), "it would stay the identity"


@pytest.mark.parametrize(
    ("spatial", "semantic", "merge"),
    [
        *(("iou", "binary", merge) for merge in MERGES),
        ("directional", "predicates", "gate"),
        ("polar-gaussian", "predicates", "mean"),
        ("polar-classes", "predicates", "chain"),
        ("polar-gaussian", "none", "gate"),
        ("iou", "none", "chain"),
        ("none", "binary", "mean"),
        ("none", "predicates", "chain"),
        ("none", "none", "mean"),
    ],
)
def test_graph_reasoning_equals_loops(spatial, semantic, merge, x64):
    case = random_case(1)
    params, ours = run(reasoning(spatial, semantic, merge), case)
    loop = partial(loop_reasoning, params, spatial=spatial, semantic=semantic, merge=merge)
    assert_valid_rows_equal(ours, case, loop)


@pytest.mark.parametrize("semantic", ["binary", "predicates"])
def test_a_batch_without_relations_has_self_loops(semantic, x64):
    case = random_case(1)
    params, ours = run(reasoning("iou", semantic), case, relations=False)
    case["relation_mask"] = np.zeros_like(case["relation_mask"])
    loop = partial(loop_reasoning, params, spatial="iou", semantic=semantic, merge="mean")
    assert_valid_rows_equal(ours, case, loop)


def test_affinity_reasoning_equals_loops(x64):
    case = random_case(2)
    params, ours = run(AffinityReasoning(2, jnp.float64), case)

    def loop(image):
        x, valid = image["values"], np.flatnonzero(image["mask"])
        for i in range(2):
            theta, phi = (dense(params[f"{name}_{i}"], x) for name in ("theta", "phi"))
            edges = [(j, k, 0, theta[j] @ phi[k] / len(valid)) for j in valid for k in valid]
            x = loop_conv(params[f"conv_{i}"], x, edges)
        return x

    assert_valid_rows_equal(ours, case, loop)


MODULES = {
    "transformer": TransformerReasoning(1, 1, 4, dtype=jnp.float64),
    "affinity": AffinityReasoning(2, jnp.float64),
    "gate": reasoning("polar-gaussian", "predicates", "gate"),
    "chain": reasoning("iou", "binary", "chain"),
}
every_module = pytest.mark.parametrize("name", MODULES)


@every_module
def test_masked_regions_may_hold_anything(name, x64):
    case = random_case(1)
    call, params = build(MODULES[name], case)
    mask, target = case["mask"], jnp.asarray(np.random.default_rng(1).normal(size=(B, R, D)))

    def loss(params, arrays):
        out = call(params, arrays["x"], jnp.asarray(case["boxes"]))
        return jnp.sum(jnp.where(jnp.asarray(mask)[..., None], target * out, 0))

    oracles.assert_masks_hide(loss, params, {"x": case["values"]}, {"x": mask})


@every_module
def test_order_of_regions_does_not_matter(name, x64):
    case, order = random_case(1), np.random.default_rng(1).permutation(R)
    moved = case | {n: case[n][:, order] for n in ("values", "boxes", "mask")}
    places = np.argsort(order)
    ends = case["relations"][..., ::2]
    known = (ends >= 0) & (ends < R)
    moved["relations"] = case["relations"].copy()
    moved["relations"][..., ::2] = np.where(known, places[np.where(known, ends, 0)], ends)
    before, after = (run(MODULES[name], c)[1] for c in (case, moved))
    valid = moved["mask"]
    np.testing.assert_allclose(after[valid], before[:, order][valid], atol=1e-9)


@pytest.mark.parametrize(
    ("field", "choices"), [("spatial", SPATIAL), ("semantic", SEMANTIC), ("merge", MERGES)]
)
def test_unknown_names_are_listed(field, choices):
    case = random_case(0)
    module = GraphReasoning(**{field: "magic"})
    expected = f"model.reasoning.{field}='magic' is not one of {', '.join(choices)}"
    with pytest.raises(UserError, match=expected):
        module.init(jax.random.key(0), case["values"], case["mask"], batch_of(case), True)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_region_projection_equals_loops(kind, x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    module = RegionProjection(kind, 6, jnp.float64)
    p = oracles.random_params(module, x)
    ours = jax.jit(module.apply)({"params": p}, x)
    for b, r in np.ndindex(2, 3):
        region = np.asarray(x[b, r])
        expected = dense(p["dense"], region)
        if kind == "residual-mlp":
            hidden = oracles.layer_norm(p["mlp_norm"], dense(p["mlp_in"], region))
            assert hidden.shape == (3,)
            expected = expected + dense(p["mlp_out"], np.maximum(hidden, 0))
        np.testing.assert_allclose(ours[b, r], expected, atol=1e-12)
    with pytest.raises(UserError, match="model.projection='mlp' is not one of linear, residual"):
        RegionProjection("mlp", 6).init(jax.random.key(0), x)
