"""Evaluators on a model that embeds what it is given, so that every number is known by hand."""

import math
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.evaluators import reranking
from xmodal_jax.evaluators.alignments import Aligner
from xmodal_jax.evaluators.encoding import Encoder, pair_similarities
from xmodal_jax.evaluators.outcomes import Outcome, means
from xmodal_jax.evaluators.pointing import PointingEvaluator
from xmodal_jax.evaluators.probes import ProbeEvaluator
from xmodal_jax.evaluators.reranking import CandidateScorer, RerankingEvaluator
from xmodal_jax.evaluators.retrieval import RetrievalEvaluator, check_scoring
from xmodal_jax.metrics.parts import make_part, metrics_of_parts, parts_of
from xmodal_jax.metrics.ranking import placement
from xmodal_jax.ops.alignment import alignment_score
from xmodal_jax.ops.embeddings import Embeddings

IMAGES, CAPTIONS, REGIONS, WIDTH, BATCH = 10, 23, 3, 4, 4


def four_devices():
    """A mesh that splits a batch of BATCH rows."""
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((BATCH, 1), ("data", "model"), devices=jax.devices()[:4], axis_types=types)


class Given(nn.Module):
    """Regions are their own embeddings; words those of a table in the parameters."""

    kind = "tokens"

    def setup(self):
        self.table = self.param("table", nn.initializers.zeros, (20, WIDTH))

    def encode_image(self, batch):
        regions = batch["regions"]
        return Embeddings(regions, batch["region_mask"], regions[:, 0])

    def encode_text(self, batch):
        words = self.table[batch["tokens"]]
        length = jnp.sum(batch["token_mask"], 1, keepdims=True)
        valid = jnp.arange(words.shape[1])[None, :] < length - 1
        return Embeddings(words[:, 1:], valid[:, 1:], words[:, 0])

    def score(self, image, caption):
        return alignment_score(image, caption, mode="MrSw")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    ids = np.arange(IMAGES) * 3 + 1
    lengths = rng.integers(3, 7, CAPTIONS)
    return SimpleNamespace(
        ids=ids,
        regions=rng.normal(size=(IMAGES, REGIONS, WIDTH)).astype(np.float32),
        table=rng.normal(size=(20, WIDTH)).astype(np.float32),
        tokens=rng.integers(0, 20, (CAPTIONS, 7)).astype(np.int32),
        token_mask=np.arange(7) < lengths[:, None],
        own=np.sort(
            ids[np.concatenate([np.arange(IMAGES), rng.integers(0, IMAGES, CAPTIONS - IMAGES)])]
        ),
        lengths=lengths,
    )


def blocks(rows, **arrays):
    """Batches of BATCH rows; the last one is filled up and masked."""
    for start in range(0, rows, BATCH):
        index = np.minimum(np.arange(start, start + BATCH), rows - 1)
        yield {k: v[index] for k, v in arrays.items()} | {
            "mask": np.arange(start, start + BATCH) < rows
        }


def image_batches(data):
    mask = np.ones((IMAGES, REGIONS), bool)
    boxes = np.zeros((IMAGES, REGIONS, 4), np.float32)
    return blocks(IMAGES, regions=data.regions, boxes=boxes, region_mask=mask, image_id=data.ids)


def caption_batches(data):
    # Token n covers characters 10 n to 10 n + 5; special tokens none.
    n = np.arange(7)
    words = (n > 0) & (n < data.lengths[:, None] - 1)
    offsets = np.where(words[..., None], np.stack([10 * n, 10 * n + 5], -1), 0)
    return blocks(
        CAPTIONS,
        tokens=data.tokens,
        token_mask=data.token_mask,
        image_id=data.own,
        caption_id=np.arange(CAPTIONS),
        offsets=offsets,
    )


@pytest.mark.parametrize("alignment", [None, ("MrSw", False), ("MwSr", False)])
def test_retrieval_equals_loops(data, alignment):
    model = Given()
    encoder = Encoder(model, four_devices())
    evaluator = RetrievalEvaluator(
        model,
        encoder,
        lambda: image_batches(data),
        lambda: caption_batches(data),
        prefix="dev/",
        alignment=alignment,  # With a mode that cannot be packed the model's own score counts.
    )
    found = dict(evaluator.run({"table": data.table}))
    scores = np.zeros((IMAGES, CAPTIONS))
    for i in range(IMAGES):
        for c in range(CAPTIONS):
            words = data.table[data.tokens[c, 1 : data.lengths[c] - 1]]
            scores[i, c] = sum(max(float(r @ w) for r in data.regions[i]) for w in words)
    expected = metrics_of_parts(parts_of(scores, data.ids, data.own, "full"))
    assert found == pytest.approx({f"dev/{k}": v for k, v in expected.items()})


@pytest.mark.parametrize("alignment", [None, ("MrSw", False)], ids=["padded", "packed"])
def test_memory_does_not_grow_with_the_captions(data, alignment):
    def peak(times):
        """Most bytes of arrays that are alive when captions are asked for, beside those before."""
        before = sum(x.nbytes for x in jax.live_arrays())
        seen = []

        def many_captions():
            for _ in range(times):
                for batch in caption_batches(data):
                    seen.append(sum(x.nbytes for x in jax.live_arrays()) - before)
                    yield batch

        encoder = Encoder(Given(), four_devices())
        split = RetrievalEvaluator(
            Given(), encoder, lambda: image_batches(data), many_captions, alignment=alignment
        ).scored_split({"table": data.table})
        assert split.scores.shape == (IMAGES, times * CAPTIONS)
        np.testing.assert_allclose(split.scores[:, -CAPTIONS:], split.scores[:, :CAPTIONS])
        return max(seen)

    assert peak(40) <= peak(20)


def test_pooled_scores_are_the_dot_products_alone(data):
    evaluator = make(RetrievalEvaluator, Given(), data, score="pooled")
    scores = data.regions[:, 0] @ data.table[data.tokens[:, 0]].T
    expected = metrics_of_parts(parts_of(scores, data.ids, data.own, "full"))
    assert dict(evaluator.run({"table": data.table})) == pytest.approx(expected)


class Crossing(Given):
    """A score that needs both items together."""

    kind = "pair"

    def score(self, image, caption):
        sim = jnp.where(caption.mask[None, :], image.tokens @ caption.tokens.T, -1e9)
        attended = jax.nn.softmax(sim, axis=1) @ caption.tokens
        return jnp.sum(jnp.tanh(attended * image.tokens))


def make(kind_of_evaluator, model, data, **options):
    encoder = Encoder(model, four_devices())
    return kind_of_evaluator(
        model, encoder, lambda: image_batches(data), lambda: caption_batches(data), **options
    )


def pair_scores(data):
    """All pairs one by one: [I, C] of `Crossing`, and [I, C] of its first stage."""
    scores, first = np.zeros((IMAGES, CAPTIONS)), np.zeros((IMAGES, CAPTIONS))
    for i in range(IMAGES):
        for c in range(CAPTIONS):
            words = data.table[data.tokens[c, 1 : data.lengths[c] - 1]].astype(np.float64)
            for region in data.regions[i].astype(np.float64):
                weights = np.exp([region @ word for word in words])
                attended = sum(w * word for w, word in zip(weights, words, strict=True))
                scores[i, c] += np.tanh(attended / weights.sum() * region).sum()
            first[i, c] = data.regions[i, 0] @ data.table[data.tokens[c, 0]]
    return scores, first


def placed_in_two_stages(scores, first, query_ids, target_ids, k):
    """By definition: the best k of the first stage by their new scores, above all the others.

    Of each query: targets above the first right one, those of its score, and the right of these;
    captions that begin with the same word are equal in the first stage.
    """
    out = []
    for q, own in enumerate(query_ids):
        order = sorted(range(len(target_ids)), key=lambda t: (-first[q, t], t))
        key = {t: (1, scores[q, t]) if t in order[:k] else (0, first[q, t]) for t in order}
        right = [key[t] for t in order if target_ids[t] == own]
        every, best = list(key.values()), max(right)
        out.append((sum(x > best for x in every), every.count(best), right.count(best)))
    return out


def metrics_in_two_stages(scores, first, image_ids, caption_ids, k):
    """Means over all orders of equal scores, of which so many leave the right ones out."""
    i2t = placed_in_two_stages(scores, first, image_ids, caption_ids, k)
    t2i = placed_in_two_stages(scores.T, first.T, caption_ids, image_ids, k)
    found = {}
    for side, placed in (("i2t", i2t), ("t2i", t2i)):
        for n in (1, 5, 10):
            missed = []
            for above, tied, right in placed:
                places = min(max(n - above, 0), tied)
                missed.append(math.comb(tied - right, places) / math.comb(tied, places))
            found[f"{side}/r{n}"] = 100 * (1 - np.mean(missed))
        rank = [above + (tied - right) / (right + 1) for above, tied, right in placed]
        found[f"{side}/median_rank"] = np.floor(np.median(rank)) + 1
        found[f"{side}/mean_rank"] = np.mean(rank) + 1
    found["rsum"] = sum(value for name, value in found.items() if "_rank" not in name)
    return found


@pytest.mark.parametrize("protocol", ["full", "5fold"])
def test_re_ranking_everything_is_exact(data, protocol):
    options = dict(protocol=protocol, prefix="dev/")
    params = {"table": data.table}
    exact = dict(make(RetrievalEvaluator, Crossing(), data, **options).run(params))
    every = make(RerankingEvaluator, Crossing(), data, top_k=CAPTIONS + 7, **options)
    assert dict(every.run(params)) == pytest.approx(exact)
    if protocol == "full":
        scores = pair_scores(data)[0]
        expected = metrics_of_parts(parts_of(scores, data.ids, data.own, "full"))
        assert exact == pytest.approx({f"dev/{name}": v for name, v in expected.items()})


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("budget", [1, 3000, 2**26])
def test_re_ranking_equals_sorting(data, monkeypatch, k, budget):
    # Blocks of one query a device, of some, and of all at once.
    monkeypatch.setattr(reranking, "_BLOCK_BYTES", budget)
    evaluator = make(RerankingEvaluator, Crossing(), data, top_k=k)
    expected = metrics_in_two_stages(*pair_scores(data), data.ids, data.own, k)
    assert dict(evaluator.run({"table": data.table})) == pytest.approx(expected)


def test_candidates_are_chosen_within_their_fold(data):
    scores, first = pair_scores(data)
    parts, size = [], IMAGES // 5
    for start in range(0, IMAGES, size):
        ids = data.ids[start : start + size]
        columns = [c for c in range(CAPTIONS) if data.own[c] in ids]
        part = [x[start : start + size][:, columns] for x in (scores, first)]
        parts.append(metrics_in_two_stages(*part, ids, data.own[columns], 1))
    evaluator = make(RerankingEvaluator, Crossing(), data, top_k=1, protocol="5fold")
    found = dict(evaluator.run({"table": data.table}))
    for name, value in found.items():
        assert value == pytest.approx(np.mean([part[name] for part in parts]))
    whole = make(RerankingEvaluator, Crossing(), data, top_k=1).run({"table": data.table})
    assert dict(whole)["t2i/mean_rank"] > found["t2i/mean_rank"]


def test_blocks_keep_to_their_memory(monkeypatch):
    scorer = CandidateScorer(Crossing(), four_devices())
    short, long = (
        Embeddings(np.zeros((30, n, 8), np.float32), np.ones((30, n), bool), np.zeros((30, 8)))
        for n in (2, 5)
    )
    # The longer item of a pair has 160 bytes, the 3 candidates of a query 480.
    for queries, budget, size in ((1000, 2**26, 1000), (1000, 16 * 480, 16), (1001, 1, 4)):
        monkeypatch.setattr(reranking, "_BLOCK_BYTES", budget)
        assert scorer.block_size(short, long, np.zeros((queries, 3), int)) == size
        assert scorer.block_size(long, short, np.zeros((queries, 3), int)) == size


def test_merging_keeps_ties_and_the_order_of_the_first_stage():
    first = np.array([[0.5, 0.9, 0.1, 0.9, 0.5, 0.7]])
    candidates = reranking.best_targets(first, 3)
    assert candidates.tolist() == [[1, 3, 5]]
    merged = reranking.merge_stages(first, candidates, np.array([[-7.0, -9.0, -9.0]]))[0]
    assert merged[[1, 3, 5]].tolist() == [-7, -9, -9]
    assert merged[0] == merged[4] and -9 > merged[0] > merged[2]
    # Of four equal ones the first two are taken, below them the others stay equal.
    equal = np.zeros((1, 4))
    candidates = reranking.best_targets(equal, 2)
    assert candidates.tolist() == [[0, 1]]
    merged = reranking.merge_stages(equal, candidates, np.array([[3.0, 3.0]]))
    assert placement(merged, np.array([2]), np.arange(4)).rank()[0] == 2.5
    assert placement(merged, np.array([1]), np.arange(4)).rank()[0] == 0.5


def test_a_score_that_is_not_finite_stays_so():
    first = np.array([[3.0, np.nan, 1.0]])
    candidates = reranking.best_targets(first, 1)
    merged = reranking.merge_stages(first, candidates, np.array([[2.0]]))
    assert np.isfinite(merged).tolist() == [[True, False, True]]
    merged = reranking.merge_stages(np.ones((1, 3)), np.array([[0, 2]]), np.array([[1.0, np.nan]]))
    assert np.isfinite(merged).tolist() == [[True, True, False]]
    rows, columns = (np.arange(1), np.arange(1)), (np.arange(3), np.array([0, 5, 6]))
    with pytest.raises(UserError, match=r"caption 2 \(of image 6\) is nan; 1 scores"):
        metrics_of_parts([make_part("i2t", 0, rows, columns, merged)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pool", 0, "pair"), "evaluate.score='pool' is not known; use model or pooled"),
        (("model", -1, "pair"), "evaluate.rerank_top_k=-1; give 0"),
        (("pooled", 5, "pair"), "rerank_top_k=5 has no effect with evaluate.score='pooled'"),
        (("model", 5, "tokens"), "of kind 'tokens' is scored exactly; set it to 0"),
    ],
)
def test_scoring_that_does_not_fit_is_one_line(arguments, said):
    with pytest.raises(UserError, match=said) as error:
        check_scoring(*arguments)
    assert "\n" not in str(error.value)


def test_scoring_that_fits():
    for arguments in (("model", 5, "pair"), ("pooled", 0, "tokens"), ("model", 0, "vector")):
        check_scoring(*arguments)


def test_pointing_counts_words_whose_best_region_is_linked(data):
    encoder = Encoder(Given(), four_devices())
    captions, starts, ends, regions, hits = [], [], [], [], 0
    rng = np.random.default_rng(1)
    for c in range(CAPTIONS):
        image = int(np.flatnonzero(data.ids == data.own[c])[0])
        for n in range(1, data.lengths[c] - 1):
            best = int(np.argmax(data.regions[image] @ data.table[data.tokens[c, n]]))
            region = int(rng.integers(0, REGIONS))
            captions.append(c)
            starts.append(10 * n)
            ends.append(10 * n + 5)
            regions.append(region)
            hits += best == region
    links = tuple(np.array(x) for x in (captions, starts, ends, regions))
    evaluator = PointingEvaluator(
        encoder, lambda: image_batches(data), lambda: caption_batches(data), links
    )
    found = dict(evaluator.run({"table": data.table}))
    assert 0 < hits < len(captions)
    assert found == {"pointing": pytest.approx(100 * hits / len(captions))}


def test_similarities_of_bfloat16_pairs_are_summed_in_float32():
    # 1 + 1/256 is no bfloat16: rounded, both regions would be 1, and the first would be the best.
    regions = np.array([[[1.0, 0, 0, 0], [1.0, 1 / 256, 0, 0]]])
    one = lambda tokens: Embeddings(
        jnp.asarray(tokens, jnp.bfloat16), np.ones((1, tokens.shape[1]), bool), jnp.zeros((1, 4))
    )
    found = pair_similarities(one(regions), one(np.array([[[1.0, 1, 0, 0]]])))
    assert found.dtype == jnp.float32
    assert np.asarray(found)[0, :, 0].tolist() == [1, 1 + 1 / 256]


def test_what_was_not_measured_has_no_figure(data):
    links = tuple(np.array([x]) for x in (0, 3, 4, 0))  # within a word, so that no token is in it
    evaluator = PointingEvaluator(
        Encoder(Given(), four_devices()),
        lambda: image_batches(data),
        lambda: caption_batches(data),
        links,
    )
    assert dict(evaluator.run({"table": data.table})) == {}
    none = tuple(np.zeros((4, 0), int))
    with pytest.raises(UserError, match="pointing=True: the split has no links .* set it to False"):
        PointingEvaluator(evaluator._encoder, lambda: None, lambda: None, none)
    outcomes = {
        "a": Outcome(np.zeros(0, int), np.zeros(0)),
        "b": Outcome(data.ids[:2], np.array([0.0, 50])),
    }
    assert dict(means(outcomes, "dev/")) == {"dev/b": 25}


def test_probes_compare_each_caption_with_its_wrong_version(data):
    # Each caption's text names its tokens; a wrong one is scored by the tokens that it names.
    texts = [
        " ".join(f"w{t}" for t in row[:n]) for row, n in zip(data.tokens, data.lengths, strict=True)
    ]
    made = []

    def text_batches(some, image_ids):
        made.append(list(some))
        tokens = np.zeros((len(some), 7), np.int32)
        mask = np.zeros((len(some), 7), bool)
        for k, text in enumerate(some):
            own = [int(word[1:]) for word in text.split()]
            tokens[k, : len(own)], mask[k, : len(own)] = own, True
        return blocks(len(some), tokens=tokens, token_mask=mask, image_id=image_ids)

    def score(text, image):
        words = [data.table[int(word[1:])] for word in text.split()][1:-1]
        regions = data.regions[int(np.flatnonzero(data.ids == image)[0])]
        return sum(max(float(region @ word) for region in regions) for word in words)

    encoder = Encoder(Given(), four_devices())
    evaluator = ProbeEvaluator(
        Given(), encoder, lambda: image_batches(data), text_batches, texts, data.own, prefix="dev/"
    )
    found = dict(evaluator.run({"table": data.table}))
    assert found.keys() == {"dev/probes/words"}  # there is nothing else to change
    [right, wrong] = made
    assert right == texts and len(wrong) == CAPTIONS
    wins = []
    for text, changed, image in zip(texts, wrong, data.own, strict=True):
        assert sorted(text.split()) == sorted(changed.split()) and text != changed
        a, b = score(text, image), score(changed, image)
        # The first and last words do not count: where they stay the scores are equal.
        wins.append(50.0 if abs(a - b) < 1e-5 else 100.0 * (a > b))
    assert found["dev/probes/words"] == pytest.approx(np.mean(wins))
    assert 0 < np.mean(wins) < 100


def test_alignments_name_the_best_region_of_each_word(data):
    texts = ["".join(f"word{n}     "[:10] for n in range(7)) for _ in range(CAPTIONS)]
    aligner = Aligner(
        Encoder(Given(), four_devices()),
        lambda: image_batches(data),
        lambda: caption_batches(data),
        texts,
    )
    wanted = np.roll(data.ids, 3)[np.arange(CAPTIONS) % IMAGES]
    found = aligner({"table": data.table}, wanted)
    assert len(found) == CAPTIONS
    for c, line in enumerate(found):
        image = int(np.flatnonzero(data.ids == wanted[c])[0])
        words = [entry.split(":") for entry in line.split()]
        assert [word for word, _, _ in words] == [f"word{n}" for n in range(1, data.lengths[c] - 1)]
        for n, (_, region, similarity) in enumerate(words, 1):
            sims = data.regions[image] @ data.table[data.tokens[c, n]]
            assert int(region) == int(np.argmax(sims))
            assert float(similarity) == pytest.approx(sims.max(), abs=1e-3)
