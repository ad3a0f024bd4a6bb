"""Figures of identical rankings, against the peers that compute them too: to 1e-9.

The reference's own evaluation (golden values), `eccv_caption`, `pytrec_eval` (the code of TREC).
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from xmodal_jax.errors import UserError
from xmodal_jax.metrics import corrected
from xmodal_jax.metrics.judgements import of_lists, same_image
from xmodal_jax.metrics.measures import measure
from xmodal_jax.metrics.parity import parity_metrics
from xmodal_jax.metrics.parts import metrics_of_parts, parts_of
from xmodal_jax.metrics.rouge import References

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import eccv_caption

GOLDEN = Path(__file__).parent / "golden" / "teran_evaluation.npz"
EXACT = dict(rel=0, abs=1e-9)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {k: file[k] for k in file.files}


@pytest.mark.parametrize("case", ["MrSw", "MwSr_shortregions"])
def test_the_reference_s_own_evaluation(golden, case):
    run = {k.split("/")[2]: v for k, v in golden.items() if k.startswith(f"eval/{case}/")}
    scores, ids = run["scores"], np.arange(60)
    own = np.repeat(ids, 5)
    relevances = {"rouge": run["rel_rougeL"], "spice": run["rel_spice"]}
    judgements = {"i2t": same_image(ids, own), "t2i": same_image(own, ids)}
    turned = {k: v.T for k, v in relevances.items()}
    parity = parity_metrics("i2t", scores, judgements["i2t"], turned)
    parity |= parity_metrics("t2i", scores.T, judgements["t2i"], relevances)
    names = ("r1", "r5", "r10", "median_rank", "mean_rank", "ndcg_rouge", "ndcg_spice")
    for side in ("i2t", "t2i"):
        assert [parity[f"{side}/{k}"] for k in names] == pytest.approx(run[side], **EXACT)
    # Without equal scores the honest ranks are the same ones, and so are the best targets.
    i2t = measure(scores, {"own": judgements["i2t"]}, turned, top=1)
    t2i = measure(scores.T, {"own": judgements["t2i"]}, relevances, top=50)
    assert i2t.found["own"].first.rank().tolist() == run["i2t_ranks"].tolist()
    assert t2i.found["own"].first.rank().tolist() == run["t2i_ranks"].tolist()
    assert i2t.top[:, 0].tolist() == run["i2t_top1"].tolist()
    assert t2i.top.tolist() == run["t2i_top50"].tolist()
    for name in relevances:
        found = i2t.ndcg[name]
        assert found[found != 0].mean() == pytest.approx(parity[f"i2t/ndcg_{name}"], **EXACT)
        assert t2i.ndcg[name].mean() == pytest.approx(parity[f"t2i/ndcg_{name}"], **EXACT)


def test_the_reference_s_rouge(golden):
    for case in json.loads(str(golden["rouge/json"])):
        references = References(case["refs"], np.zeros(len(case["refs"]), int), 1)
        assert references.relevance(case["cand"])[0] == pytest.approx(case["score"], **EXACT)


def test_trec(tmp_path):
    rng = np.random.default_rng(0)
    queries, targets = 40, 60
    scores = rng.permuted(np.tile(np.arange(targets), (queries, 1)), axis=1).astype(float)
    levels = rng.integers(0, 4, (queries, targets)) * (rng.random((queries, targets)) < 0.3)
    levels[:, 0] = np.maximum(levels[:, 0], 1)
    lists = [np.flatnonzero(row) for row in levels]
    ours = measure(
        scores,
        {"own": of_lists(range(queries), lists)},
        # TREC's gain is the level itself; ours is 2^rel - 1.
        {"level": np.log2(levels + 1.0)},
    )
    # trec_eval leaves out at the cut what was not retrieved, and divides by all positives.
    cuts = ",".join(str(n) for n in range(1, targets))
    qrels = {f"q{q}": {f"d{t}": int(levels[q, t]) for t in range(targets)} for q in range(queries)}
    run = {f"q{q}": {f"d{t}": scores[q, t] for t in range(targets)} for q in range(queries)}
    measures = {"Rprec", "recip_rank", "ndcg_cut.25", f"map_cut.{cuts}"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    found = ours.found["own"]
    for q in range(queries):
        trec = theirs[f"q{q}"]
        assert found.r_precision[q] == pytest.approx(trec["Rprec"], **EXACT)
        assert found.first.reciprocal_rank()[q] == pytest.approx(trec["recip_rank"], **EXACT)
        assert found.average_precision[q] == pytest.approx(
            trec[f"map_cut_{len(lists[q])}"], **EXACT
        )
        assert ours.ndcg["level"][q] == pytest.approx(trec["ndcg_cut_25"], **EXACT)


@pytest.fixture(scope="module")
def oracle():
    return eccv_caption.Metrics()


@pytest.fixture(scope="module")
def captions_of(oracle):
    """COCO's test captions by image, in the order of its folds."""
    own = {}
    for caption in oracle.coco_ids.tolist():
        own.setdefault(oracle.coco_gts["t2i"][caption][0], []).append(caption)
    return own


@pytest.fixture(scope="module")
def shuffled(captions_of):
    """Images in an order of our own, the rows of captions, their ids; one has a sixth caption."""
    images = np.random.default_rng(1).permutation(list(captions_of))
    rows = np.insert(np.repeat(np.arange(len(images)), 5), 15, 2)
    captions = np.insert(np.array([c for i in images for c in captions_of[int(i)]]), 15, -1)
    return images, rows, captions


def test_captions_of_coco_are_recognised_in_any_order(oracle, shuffled):
    images, rows, captions = shuffled
    split = corrected.coco_test(images, rows)
    assert split.columns.tolist() == np.flatnonzero(captions >= 0).tolist()
    assert split.caption_ids.tolist() == captions[captions >= 0].tolist()
    for name, truth in (("cxc", oracle.cxc_gts), ("eccv", oracle.eccv_gts)):
        for side, judged in split.judgements(name).items():
            ids = (split.image_ids, split.caption_ids)
            queries, targets = ids if side == "i2t" else ids[::-1]
            found = {int(queries[q]): set(targets[t].tolist()) for q, t, _ in judged}
            known = set(targets.tolist())
            assert found == {q: set(own) & known for q, own in truth[side].items()}


def best(scores, count=200):
    """[Q, count] of the highest scores, by numpy."""
    found = []
    for row in scores:
        among = np.argpartition(row, -count)[-count:]
        found.append(among[np.argsort(-row[among])])
    return np.array(found)


def test_figures_of_coco_equal_eccv_caption(oracle, captions_of):
    images = np.array(list(captions_of))
    split = corrected.coco_test(images, np.repeat(np.arange(5000), 5))
    rng = np.random.default_rng(2)
    # Ranks that agree with the ground truth in part, each score but once in its row.
    noise = rng.random((5000, 25000), dtype=np.float32)
    noise += 1.0 * (split.caption_ids[None, :] % 7 == images[:, None] % 7)
    for caption, truth in oracle.eccv_gts["t2i"].items():
        column = np.flatnonzero(split.caption_ids == caption)[0]
        noise[np.isin(images, truth), column] += rng.random(dtype=np.float32)
    order = {"i2t": split.caption_ids[best(noise)], "t2i": images[best(noise.T)]}
    retrieved = {
        "i2t": dict(zip(images.tolist(), order["i2t"].tolist(), strict=True)),
        "t2i": dict(zip(split.caption_ids.tolist(), order["t2i"].tolist(), strict=True)),
    }
    peer = oracle.eccv_metrics(retrieved, "all")
    cxc = {k: oracle.cxc_recalls(retrieved, "all", K=k) for k in (1, 5, 10)}
    judged = {name: split.judgements(name) for name in ("eccv", "cxc")}
    for side, scores in (("i2t", noise), ("t2i", noise.T)):
        found = measure(scores, {name: sides[side] for name, sides in judged.items()}).found
        eccv = found["eccv"]
        assert np.mean(eccv.first.recall(1)) == pytest.approx(peer["eccv_r1"][side], **EXACT)
        assert eccv.average_precision.mean() == pytest.approx(peer["eccv_map_at_r"][side], **EXACT)
        assert eccv.r_precision.mean() == pytest.approx(peer["eccv_rprecision"][side], **EXACT)
        assert 0.01 < eccv.average_precision.mean() < 0.99
        for k, value in cxc.items():
            assert np.mean(found["cxc"].first.recall(k)) == pytest.approx(value[side], **EXACT)
    # The recalls of all images at once and of five folds.
    owners = np.repeat(images, 5)
    for protocol, recalls in (("full", oracle.coco_5k_recalls), ("5fold", oracle.coco_1k_recalls)):
        ours = metrics_of_parts(parts_of(noise, images, owners, protocol))
        for k in (1, 5, 10):
            for side, value in recalls(retrieved, "all", K=k).items():
                assert ours[f"{side}/r{k}"] / 100 == pytest.approx(value, **EXACT)


def test_another_collection_has_no_corrected_ground_truth(shuffled):
    images, rows, _ = shuffled
    with pytest.raises(UserError, match="COCO's 5,000 test images .*; 2 images are only"):
        corrected.coco_test(np.append(images[:-1], 2**31 - 1), rows)
    with pytest.raises(UserError, match="1 captions of COCO's test images are not here"):
        corrected.coco_test(images, rows[:-1])


def test_file_names_of_coco():
    found = corrected.coco_image_ids(["COCO_val2014_000000391895.jpg", "a/000000391895.png", "7"])
    assert found.tolist() == [391895, 391895, 7]
    with pytest.raises(UserError, match="'dog.jpg' is no file name of COCO"):
        corrected.coco_image_ids(["dog.jpg"])
