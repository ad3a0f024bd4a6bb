"""The pieces of a run that training, evaluation and export share, made from a configuration."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax
from absl import logging
from flax.traverse_util import flatten_dict

from data_pipeline import catalog, entities, input_pipeline, region_captions
from data_pipeline.tokenizer import Tokenizer, make_tokenizer
from xmodal_jax import distributed, export, optimizer, partitioning, train_state
from xmodal_jax.errors import UserError
from xmodal_jax.evaluators import Evaluator
from xmodal_jax.evaluators.alignments import Aligner
from xmodal_jax.evaluators.encoding import Batches, Encoder
from xmodal_jax.evaluators.grounding import GroundingEvaluator
from xmodal_jax.evaluators.pairs import PairAligner
from xmodal_jax.evaluators.pointing import PointingEvaluator
from xmodal_jax.evaluators.probes import ProbeEvaluator
from xmodal_jax.evaluators.reranking import RerankingEvaluator
from xmodal_jax.evaluators.retrieval import RetrievalEvaluator, check_scoring
from xmodal_jax.metrics.ranking import PROTOCOLS
from xmodal_jax.models import build_model, pretrained
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.models.bert import BertConfig
from xmodal_jax.models.teran import Teran
from xmodal_jax.partition_presets import preset_rules


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data, tokenizer, model, optimiser and their placement on the devices."""

    config: ml_collections.ConfigDict
    dataset: Any  # TFDS builder
    tokenizer: Tokenizer
    feature_width: int
    predicates: tuple[str, ...]  # of the data's scene graphs
    mesh: jax.sharding.Mesh
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    abstract: train_state.TrainState
    shardings: train_state.TrainState

    @classmethod
    def create(cls, config: ml_collections.ConfigDict) -> "Experiment":
        """Opens the data and builds everything else; no parameter is computed yet."""
        check_config(config)
        mesh = partitioning.make_mesh(config.mesh.data, config.mesh.model)
        partitioning.check_batch_size(config.train.batch_size, mesh, "train.batch_size")
        parts = config.train.encode_parts
        if config.train.batch_size % (parts * mesh.shape["data"]):
            raise UserError(
                f"train.encode_parts={parts} parts on {mesh.shape['data']} device(s) do not divide "
                f"train.batch_size={config.train.batch_size}; use fewer parts"
            )
        partitioning.check_batch_size(config.evaluate.batch_size, mesh, "evaluate.batch_size")
        dataset = open_dataset(config.data)
        # Now, and not at the first evaluation, hours later.
        for split in (config.data.train_split, config.evaluate.split):
            region_captions.split_info(dataset, split)
        if config.evaluate.protocol not in PROTOCOLS:
            raise UserError(
                f"evaluate.protocol={config.evaluate.protocol!r} is not known; "
                f"use {' or '.join(PROTOCOLS)}"
            )
        width = catalog.feature_width(dataset)
        counts = dataset.info.metadata["word_counts"]
        tokenizer = make_tokenizer(config.data.tokenizer, counts, config.data.min_word_count)
        predicates = tuple(catalog.predicates(dataset))
        _check_scene_graphs(config, len(predicates))
        model = build_model(config.model, width, tokenizer.vocab_size, len(predicates))
        text = model.config.text
        if isinstance(text, BertConfig) and config.data.max_tokens > text.max_positions:
            raise UserError(
                f"data.max_tokens={config.data.max_tokens} is more than the text encoder's "
                f"{text.max_positions} positions; use that or less"
            )
        params = train_state.abstract_params(model, batch_spec(config, width))
        tx, schedule = optimizer.make_optimizer(config.optimizer, params, config.train.steps)
        abstract = train_state.abstract_state(params, tx)
        preset = preset_rules(config.partition, params, mesh)
        shardings = partitioning.shardings(abstract, config.partition_rules, mesh, preset)
        return cls(
            config,
            dataset,
            tokenizer,
            width,
            predicates,
            mesh,
            model,
            tx,
            schedule,
            abstract,
            shardings,
        )

    def new_state(self) -> train_state.TrainState:
        """A fresh state: random, with the weights that the configuration starts from."""
        config = self.config
        spec = batch_spec(config, self.feature_width)
        state = train_state.create_state(self.model, self.tx, spec, self.shardings, config.seed)
        loaded = self._initial_weights()
        return train_state.replace_params(state, loaded, self.shardings) if loaded else state

    def _initial_weights(self) -> dict[str, Any]:
        config = self.config
        if config.init_from and Path(config.init_from).is_dir():
            return self._exported_weights()
        if config.init_from:
            if not isinstance(self.model, Teran):
                raise UserError(
                    f"init_from={config.init_from} is a file, which only TERAN reads; give the "
                    f"directory of an export of this {config.model.name}"
                )
            tensors = pretrained.read_state_dict(config.init_from)
            return pretrained.params_from_state_dict(tensors, self.model.config)
        if config.model.text.get("pretrained"):
            directory = pretrained.find(config.model.text.pretrained)
            bert = {"bert": pretrained.bert_params(directory, self.model.config.text)}
            return bert if isinstance(self.model, Teran) else {"text_encoder": bert}
        return {}

    def _exported_weights(self) -> dict[str, Any]:
        """Parameters of the export that init_from names, which must be of this very model."""
        exported = export.load(self.config.init_from)
        trees = (self.abstract.params, exported.params)
        ours, theirs = (flatten_dict(tree, sep="/").keys() for tree in trees)
        if differing := sorted(ours ^ theirs):
            raise UserError(
                f"init_from={self.config.init_from} is another model: only one of the two has "
                f"{differing[0]}; use the configuration it was made with"
            )
        words = list(self.dataset.info.metadata["word_counts"])[:1000] or ["a"]
        if not np.array_equal(
            exported.tokenizer.encode(words, 8).ids, self.tokenizer.encode(words, 8).ids
        ):
            raise UserError(
                f"init_from={self.config.init_from} has another tokenizer than this data and "
                "configuration give; set data.tokenizer to its directory tokenizer/"
            )
        return exported.params

    def _batches(self) -> tuple[Batches, Batches]:
        """The images and the captions of the split to evaluate."""
        c = self.config.evaluate
        common = dict(split=c.split, batch_size=c.batch_size)
        images = partial(
            input_pipeline.image_batches,
            self.dataset,
            max_regions=self.config.data.max_regions,
            max_relations=self.config.data.max_relations,
            **common,
        )
        captions = partial(
            input_pipeline.caption_batches,
            self.dataset,
            tokenizer=self.tokenizer,
            max_tokens=self.config.data.max_tokens,
            **common,
        )
        return images, captions

    def aligner(self) -> Aligner:
        """Says which region of an image answers which word, on the split to evaluate."""
        encoder = Encoder(self.model, self.mesh)
        captions = catalog.texts(self.dataset, self.config.evaluate.split).captions
        return Aligner(encoder, *self._batches(), captions)

    def pair_aligner(self) -> PairAligner:
        """The same of chosen images of that split with any captions."""
        encoder = Encoder(self.model, self.mesh)
        return PairAligner(encoder, self._batches()[0], self._text_batches())

    def _text_batches(self) -> Callable[..., Iterator[input_pipeline.Batch]]:
        return partial(
            input_pipeline.text_batches,
            tokenizer=self.tokenizer,
            batch_size=self.config.evaluate.batch_size,
            max_tokens=self.config.data.max_tokens,
        )

    def evaluators(self, progress: bool = False) -> list[Evaluator]:
        """The evaluators of `config.evaluate`, on its split."""
        c = self.config.evaluate
        encoder = Encoder(self.model, self.mesh)
        images, captions = self._batches()
        prefix = c.split + "/"
        figures = self.dataset.info.metadata["splits"][c.split]
        check_scoring(c.score, c.rerank_top_k, self.model.kind)
        staged = c.rerank_top_k > 0 or c.score == "pooled"
        if staged and self.model.kind != "vector" and self.config.loss.pooled_weight <= 0:
            logging.warning("the pooled vectors were not trained: loss.pooled_weight was 0")
        alignment = None if self.config.scorer == "pairs" else self.model.alignment
        chosen = (
            partial(RerankingEvaluator, top_k=c.rerank_top_k)
            if c.rerank_top_k
            else partial(RetrievalEvaluator, score=c.score, alignment=alignment)
        )
        out: list[Evaluator] = [
            chosen(
                self.model,
                encoder,
                images,
                captions,
                protocol=c.protocol,
                prefix=prefix,
                progress=progress,
                items=figures["images"] + figures["captions"],
            )
        ]
        if c.pointing:
            links = catalog.links(self.dataset, c.split)
            out.append(PointingEvaluator(encoder, images, captions, links, prefix=prefix))
        if c.entities:
            # Data built before boxes were counted does not say how many images have them.
            if not figures.get("with_boxes", 1):
                raise UserError(
                    f"evaluate.entities={c.entities}: no image of split {c.split} of "
                    f"{self.config.data.name!r} has boxes of its regions; build the data "
                    "with boxes, or leave it empty"
                )
            phrases = self._boxed_phrases(c.entities, c.split)
            out.append(GroundingEvaluator(encoder, images, captions, phrases, prefix=prefix))
        if c.probes:
            found = catalog.texts(self.dataset, c.split)
            texts = self._text_batches()
            of_split = found.captions, found.caption_image_id
            out.append(ProbeEvaluator(self.model, encoder, images, texts, *of_split, prefix=prefix))
        return out

    def _boxed_phrases(self, directory: str, split: str) -> dict[int, list[entities.Phrase]]:
        """Phrases with boxes by caption id."""
        found = catalog.texts(self.dataset, split)
        rows = np.searchsorted(np.cumsum(found.counts), np.arange(len(found.captions)), "right")
        own: list[list[str]] = [[] for _ in found.file_names]
        for row, text in zip(rows, found.captions, strict=True):
            own[row].append(text)
        known = entities.read_entities(Path(directory), found.file_names, own)
        if known.unknown:
            logging.warning("%d captions are not in %s: left out", known.unknown, directory)
        if not any(known.phrases):
            raise UserError(
                f"evaluate.entities={directory} has no phrase with a box of split {split}; give "
                "the directory that has its captions, or leave it empty"
            )
        return dict(zip(found.caption_id.tolist(), known.phrases, strict=True))


_POSITIVE = (
    "data.max_regions",
    "data.shuffle_buffer",
    "train.steps",
    "train.batch_size",
    "train.encode_parts",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep",
    "evaluate.batch_size",
    "mesh.model",
)
_DTYPES = ("float32", "bfloat16")


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for values that can't work, before anything is loaded."""
    values = flatten_dict(config.to_dict(), sep=".")
    for field in _POSITIVE:
        if values[field] < 1:
            raise UserError(f"{field}={values[field]}; give 1 or more")
    if config.model.dtype not in _DTYPES:
        raise UserError(f"model.dtype={config.model.dtype!r} is not one of {', '.join(_DTYPES)}")


def _check_scene_graphs(config: ml_collections.ConfigDict, num_predicates: int) -> None:
    """Whether a model that reasons along relations gets any."""
    semantic = config.model.get("reasoning", {}).get("semantic", "none")
    if semantic == "none":
        return
    if config.data.max_relations < 1:
        raise UserError(
            f"model.reasoning.semantic={semantic!r} needs data.max_relations=1 or more, not "
            f"{config.data.max_relations}; 25 is usual"
        )
    if not num_predicates:
        logging.warning(
            "data set %r has no scene graphs: the semantic graph connects each region with itself "
            "only",
            config.data.name,
        )


def open_dataset(config: Any) -> Any:
    """The data set of `config.data`; the synthetic one is built where it is missing."""
    if config.build_synthetic:
        from data_pipeline.build import build
        from data_pipeline.synthetic import SyntheticScenes

        source = SyntheticScenes(dict(config.synthetic_sizes), name=config.name)
        if distributed.is_main():
            build(source, config.dir)
        distributed.wait_for_all("synthetic data")
        # It is there by now, unless this process's machine has a disk of its own.
        region_captions.build_dataset(source, config.dir)
    return region_captions.open_dataset(config.dir, config.name)
