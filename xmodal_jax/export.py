"""A trained model as a directory that loads with one call and encodes texts and images.

  python -m xmodal_jax.main --config=configs/demo.py --workdir=runs/demo --mode=export

  model = xmodal_jax.export.load("runs/demo/export")
  captions = model.encode_text(["a red circle left of a blue square"])
  images = model.encode_image(regions, boxes)     # [B, R, F], [B, R, 4] in 0..1
  scores = model.scores(images, captions)         # [B, 1]

The directory holds `params/` (Orbax), `model.json` and `tokenizer/`.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from xmodal_jax import train_state
from xmodal_jax.errors import UserError
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import encoder_spec
from xmodal_jax.models.scorers import pair_scorer
from xmodal_jax.ops.alignment import score_matrix
from xmodal_jax.ops.embeddings import Embeddings

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A model with its parameters and tokenizer."""

    model: nn.Module
    params: Any
    tokenizer: Tokenizer
    feature_width: int
    max_regions: int
    max_tokens: int
    max_relations: int
    predicates: tuple[str, ...]  # of the scene graphs the model was trained with; their numbers

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of sizes, parameters and tokenizer: equal for models that encode alike."""
        digest = hashlib.sha256(repr((self.model, self.max_regions, self.max_tokens)).encode())
        digest.update(self.tokenizer.definition().encode())
        for name, value in sorted(flatten_dict(self.params, sep="/").items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def encode_text(self, captions: Sequence[str]) -> Embeddings:
        """Embeddings of C captions; longer ones than max_tokens are cut."""
        if isinstance(captions, str):
            raise UserError(f"captions is one string, {captions!r}; give a list: [{captions!r}]")
        encoded = self.tokenizer.encode(list(captions), self.max_tokens)
        return self.encode_batch("encode_text", {"tokens": encoded.ids, "token_mask": encoded.mask})

    def encode_image(
        self,
        regions: np.ndarray,
        boxes: np.ndarray,
        region_mask: np.ndarray | None = None,
        relations: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Embeddings:
        """Embeddings of B images.

        Args:
          regions: [B, R, F] region features.
          boxes: [B, R, 4] x1, y1, x2, y2, divided by the image's width and height.
          region_mask: [B, R] bool, False on padding; all valid if not given.
          relations: for a model with scene graphs, int [B, E, 3] of subject region, number in
            `predicates`, object region, and confidences [B, E], 0 on padding; none if not given.
        """
        if regions.ndim != 3 or regions.shape[-1] != self.feature_width:
            raise UserError(
                f"regions have shape {regions.shape}; this model takes [B, R, {self.feature_width}]"
            )
        if boxes.shape != (*regions.shape[:2], 4):
            raise UserError(f"boxes have shape {boxes.shape}, not {(*regions.shape[:2], 4)}")
        if region_mask is None:
            region_mask = np.ones(regions.shape[:2], bool)
        if region_mask.shape != regions.shape[:2]:
            raise UserError(f"region_mask has shape {region_mask.shape}, not {regions.shape[:2]}")
        if not np.isfinite(regions[region_mask]).all():
            raise UserError("regions hold values that are not finite; correct the features")
        valid = boxes[region_mask]
        if not ((valid >= 0) & (valid <= 1)).all():
            raise UserError("boxes are not in 0..1; divide pixels by the image's width and height")
        graph = self._scene_graph(relations, regions.shape[:2]) if relations else {}
        batch = {"regions": regions, "boxes": boxes, "region_mask": region_mask}
        return self.encode_batch("encode_image", batch | graph)

    def _scene_graph(
        self, relations: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        triples, scores = (np.asarray(x) for x in relations)
        if not np.issubdtype(triples.dtype, np.integer):
            raise UserError(f"relations are {triples.dtype}; give the numbers of regions and names")
        if triples.shape != (shape[0], *scores.shape[1:], 3) or scores.ndim != 2:
            raise UserError(
                f"relations have shapes {triples.shape} and {scores.shape}, not "
                f"({shape[0]}, E, 3) and ({shape[0]}, E)"
            )
        if not np.isfinite(scores).all():
            raise UserError("confidences of relations are not finite; correct them")
        limits = np.array([shape[1], len(self.predicates), shape[1]])
        valid = scores > 0
        if not ((triples[valid] >= 0) & (triples[valid] < limits)).all():
            raise UserError(
                f"relations name a region or predicate that does not exist; there are {shape[1]} "
                f"regions and {len(self.predicates)} predicates"
            )
        return {"relations": triples, "relation_scores": scores, "relation_mask": valid}

    def scores(self, images: Embeddings, captions: Embeddings) -> np.ndarray:
        """Scores [B, C] of all images with all captions."""
        return np.asarray(self._score_all(self.params, images, captions))

    def encode_batch(self, method: str, batch: Mapping[str, np.ndarray]) -> Embeddings:
        """What `encode_image` or `encode_text` of the model makes of these fields of a batch."""
        return self._apply(self.params, dict(batch), method=method)

    @functools.cached_property
    def _apply(self) -> Callable[..., Embeddings]:
        def apply(params: Any, batch: dict[str, jax.Array], method: str) -> Embeddings:
            return self.model.apply({"params": params}, batch, method=method)

        return jax.jit(apply, static_argnames="method")

    @functools.cached_property
    def _score_all(self) -> Callable[..., jax.Array]:
        kind = self.model.kind
        return jax.jit(lambda p, i, c: score_matrix(pair_scorer(self.model, p), i, c, kind=kind))


def save(
    directory: str | Path,
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    feature_width: int,
    predicates: Sequence[str] = (),
) -> None:
    """Writes an export; `directory` is replaced only when the new one is whole.

    Args:
      config: the whole configuration the model was made from.
    """
    directory = Path(directory).absolute()
    aside = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    # The sizes of the text encoder as they came out, so that no other file is needed to load.
    sizes = config.model.to_dict()
    sizes["text"] |= dataclasses.asdict(model.config.text)
    if "pretrained" in sizes["text"]:
        sizes["text"]["pretrained"] = ""
    content = {
        "format": FORMAT,
        "model": sizes,
        "feature_width": feature_width,
        "max_regions": config.data.max_regions,
        "max_tokens": config.data.max_tokens,
        "max_relations": config.data.max_relations,
        "predicates": list(predicates),
    }
    (aside / "model.json").write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(aside / "tokenizer")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(aside / "params", params)
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)


def load(directory: str | Path) -> ExportedModel:
    """Loads an export.

    Raises:
      UserError: the directory is not an export, or one of a newer format.
    """
    directory = Path(directory).absolute()
    path = directory / "model.json"
    if not path.is_file():
        raise UserError(f"{directory} is not an export: it has no model.json; use --mode=export")
    content = json.loads(path.read_text())
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; export again"
        )
    config = ml_collections.ConfigDict(content["model"])
    width = content["feature_width"]
    predicates = tuple(content.get("predicates", ()))
    model = build_model(config, width, config.text.vocab_size, len(predicates))
    spec = encoder_spec(1, content["max_regions"], width, content["max_tokens"])
    # Here, whatever machine wrote it: an export of a pod loads on a laptop.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here),
        train_state.abstract_params(model, spec),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(directory / "params", abstract)
    return ExportedModel(
        model=model,
        params=params,
        tokenizer=load_tokenizer(directory / "tokenizer"),
        feature_width=width,
        max_regions=content["max_regions"],
        max_tokens=content["max_tokens"],
        # Exports made before the search do not say it.
        max_relations=content.get("max_relations", 16 if predicates else 0),
        predicates=predicates,
    )
