"""Hugging Face models that look at images: backbones and object detectors.

Needs the extra `extract`: pip install "xmodal_jax[extract]". A model is a directory with
config.json, preprocessor_config.json and safetensors files, or the name of one on the hub. No
pickle is read and no code of a model's repository is run.

Images are scaled here and not by the models' own processors: those cut the middle out of a
image, so that boxes would no longer be boxes of the image, and some want torchvision.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors
import torch
from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from data_pipeline.errors import DataError

_BICUBIC = 3  # Pillow's number for it
_LONGEST = 1333  # longest side for detectors whose files give the shortest only (DETR's default)
# Parts of which the output of the last layer does not depend; other tasks' weights lack them.
_HEADS = {"pooler", "head"}
# Fields of detectors' configurations. What AutoModel makes of them gives objects, no map.
_QUERIES = {"num_detection_tokens", "num_queries"}
_FAILURES = (
    *(OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError),
    safetensors.SafetensorError,
)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a model wants its pixels: `(x * scale - mean) / std`.

    size: of a detector's images: {"height", "width"}, or {"shortest_edge", "longest_edge"}.
    resample: Pillow's number of the interpolation.
    """

    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int
    size: dict[str, int]
    blue_first: bool

    def pixels(self, images: np.ndarray, device: torch.device) -> torch.Tensor:
        """uint8 [B, h, w, 3] -> float32 [B, 3, h, w]."""
        values = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() * self.scale
        mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (self.mean, self.std))
        values = (values - mean) / std
        return values.flip(1) if self.blue_first else values

    def target(self, width: int, height: int, multiple: int = 1) -> tuple[int, int]:
        """Width and height for a detector, which are multiples of `multiple`."""
        if "height" in self.size:
            return self.size["width"], self.size["height"]
        shortest, longest = self.size["shortest_edge"], self.size.get("longest_edge", _LONGEST)
        scale = min(shortest / min(width, height), longest / max(width, height))
        scaled = (max(1, round(width * scale)), max(1, round(height * scale)))
        return tuple(max(multiple, x - x % multiple) for x in scaled)  # type: ignore[return-value]

    @property
    def side(self) -> int:
        """The longest side that `target` may give."""
        if "height" in self.size:
            return max(self.size["height"], self.size["width"])
        return self.size.get("longest_edge", _LONGEST)


def read_preprocessing(name: str) -> Preprocessing:
    """What the preprocessor_config.json of a model says.

    Raises:
      DataError: there is none, or a field is missing or no number.
    """
    with _told_in_one_line(f"preprocessor_config.json of {name}"):
        found, _ = ImageProcessingMixin.get_image_processor_dict(name)
    try:
        normalise = found.get("do_normalize", "image_mean" in found)
        mean, std = (found["image_mean"], found["image_std"]) if normalise else ([0] * 3, [1] * 3)
        return Preprocessing(
            scale=found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0,
            mean=_three(mean),
            std=_three(std),
            resample=int(found.get("resample", _BICUBIC)),
            size=_size(found),
            blue_first=bool(found.get("do_flip_channel_order", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"preprocessor_config.json of {name} can't be used ({type(error).__name__}: {error}); "
            "take the file that belongs to the model"
        ) from None


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    if not all(math.isfinite(value) for value in (red, green, blue)):
        raise ValueError(f"{values} is not finite")
    return red, green, blue


def _size(found: dict[str, Any]) -> dict[str, int]:
    size = found.get("size")
    if isinstance(size, int):  # as older files have it
        return {"shortest_edge": size, "longest_edge": int(found.get("max_size") or _LONGEST)}
    # Of a backbone, whose images have the size that the user asks for, it may be anything.
    return {key: int(value) for key, value in (size or {}).items() if value is not None}


class Backbone:
    """The vision half of a model, which gives a map of features.

    Attributes:
      sha256: of its parameters, its configuration and its preprocessing.
      width: D of the features.
      cells: h and w of the map.
    """

    def __init__(self, name: str, image_size: int, device: torch.device) -> None:
        """
        Args:
          image_size: pixels; images are scaled to this width and height.

        Raises:
          DataError: it can't be loaded, is no vision model, or can't take this size.
        """
        self.name, self.image_size, self._device = name, image_size, device
        self.preprocessing = read_preprocessing(name)
        self._model = _vision_half(_load(AutoModel, name), name).to(device)
        self.sha256 = _digest(self._model, self.preprocessing)
        parameters = inspect.signature(self._model.forward).parameters
        # Models that learned a vector for each position take other sizes only if told so.
        key = "interpolate_pos_encoding"
        self._options = {key: True} if key in parameters else {}
        self._patch = _patch_size(self._model.config)
        if self._patch and image_size % self._patch:
            below = image_size - image_size % self._patch
            raise DataError(
                f"--image-size={image_size} is not a multiple of {self._patch}, the patches of "
                f"{name}; use {below or self._patch} or {below + self._patch}"
            )
        with _told_in_one_line(f"backbone {name} with --image-size={image_size}"):
            probe = self.maps(np.zeros((1, image_size, image_size, 3), np.uint8))
        self.width: int = probe.shape[1]
        self.cells: tuple[int, int] = probe.shape[2], probe.shape[3]

    @torch.inference_mode()
    def maps(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [B, image_size, image_size, 3] -> float32 [B, D, h, w]."""
        pixels = self.preprocessing.pixels(images, self._device)
        output = self._model(pixel_values=pixels, **self._options).last_hidden_state
        return self._as_map(output)

    def _as_map(self, output: torch.Tensor) -> torch.Tensor:
        if output.ndim == 4:  # a convolutional network
            return output
        total, side = output.shape[1], self.image_size // self._patch if self._patch else 0
        if not 0 < side * side <= total:  # no patches of one size: they are merged on the way
            side = math.isqrt(total)
            if side * side != total:
                raise DataError(
                    f"backbone {self.name} gives {total} tokens, which are no map of a square "
                    "image; use another one"
                )
        # Tokens that are no patches come first: class token, distillation token, registers.
        patches = output[:, total - side * side :]
        return patches.transpose(1, 2).unflatten(2, (side, side))


def _vision_half(model: Any, name: str) -> Any:
    """The model itself, or its half for images if it has one for text too."""
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise DataError(f"{name} ({type(model).__name__}) does not take images; use another")
    if _QUERIES & model.config.to_dict().keys():
        raise DataError(f"{name} is a detector; give it as --detector, and a --backbone beside it")
    return model


def _patch_size(config: Any) -> int:
    size = getattr(config, "patch_size", 0)
    return size if isinstance(size, int) else 0


@dataclasses.dataclass(frozen=True)
class Detections:
    """What a detector sees in one image, Q guesses of any quality.

    boxes: float32 [Q, 4] x1, y1, x2, y2 in 0..1.
    scores: float32 [Q].
    labels: int32 [Q].
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Detector:
    """An object detector of the DETR family (DETR, YOLOS, RT-DETR, D-FINE ...).

    Attributes:
      labels: names of its classes.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Raises DataError if it can't be loaded or its output is of another kind."""
        self.name, self._device = name, device
        self.preprocessing = read_preprocessing(name)
        if not {"height", "width"} <= self.preprocessing.size.keys() and (
            "shortest_edge" not in self.preprocessing.size
        ):
            raise DataError(
                f"preprocessor_config.json of {name} has size {self.preprocessing.size}; it needs "
                "height and width, or shortest_edge"
            )
        self._model = _load(AutoModelForObjectDetection, name).to(device)
        self.sha256 = _digest(self._model, self.preprocessing)
        self._multiple = _patch_size(self._model.config) or 1
        names = self._model.config.id2label
        self.labels = [str(names.get(i, i)) for i in range(self._model.config.num_labels)]
        width, height = self.target(640, 480)
        with _told_in_one_line(f"detector {name}"):
            self.detect(np.zeros((1, height, width, 3), np.uint8))

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to which an image of this size has to be scaled."""
        return self.preprocessing.target(width, height, self._multiple)

    @torch.inference_mode()
    def detect(self, images: np.ndarray) -> list[Detections]:
        """Looks at B images of one size, uint8 [B, h, w, 3]."""
        output = self._model(pixel_values=self.preprocessing.pixels(images, self._device))
        scores, labels = self._classes(output.logits)
        x, y, width, height = output.pred_boxes.unbind(-1)
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
        found = zip(boxes.clamp(0, 1), scores, labels.int(), strict=True)
        return [Detections(*(part.cpu().numpy() for part in parts)) for parts in found]

    def _classes(self, logits: torch.Tensor) -> Sequence[torch.Tensor]:
        """[B, Q, classes] -> scores and labels [B, Q] of the best class."""
        classes = len(self.labels)
        if logits.shape[-1] == classes + 1:  # the last one is "nothing", as in DETR and YOLOS
            return logits.softmax(-1)[..., :-1].max(-1)
        if logits.shape[-1] == classes:  # each class by itself, as in RT-DETR
            return logits.sigmoid().max(-1)
        raise DataError(
            f"detector {self.name} gives {logits.shape[-1]} scores for its {classes} classes; use "
            "another one"
        )


def _load(auto_class: Any, name: str) -> Any:
    """A whole model in float32, ready for inference."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with _told_in_one_line(f"model {name}"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model, report = auto_class.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(key for key in report["missing_keys"] if _counts(key, model))
    if missing:
        raise DataError(
            f"the weights of {name} lack {len(missing)} tensors of {type(model).__name__}, e.g. "
            f"{missing[0]}; use a model that was trained as a whole"
        )
    return model.eval()


def _counts(key: str, model: Any) -> bool:
    """Whether the regions would depend on that parameter."""
    parts = key.split(".")
    if hasattr(model, "vision_model") and parts[0] != "vision_model":
        return False
    return not _HEADS & set(parts)


@contextlib.contextmanager
def _told_in_one_line(what: str) -> Iterator[None]:
    """What goes wrong inside of transformers becomes one line."""
    try:
        yield
    except DataError:
        raise
    except _FAILURES as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "").strip()
        raise DataError(
            f"{what} can't be used ({type(error).__name__}: {reason}); give a directory with "
            "config.json, preprocessor_config.json and safetensors files, or a name on the hub"
        ) from None


def _digest(model: Any, preprocessing: Preprocessing) -> str:
    """SHA-256 of everything that the output depends on."""
    config = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        config.pop(key, None)
    parts = [config, dataclasses.asdict(preprocessing)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    # A head that the checkpoint lacks is random, another in every process, and not used.
    used = {name: x for name, x in model.state_dict().items() if _counts(name, model)}
    for name, tensor in sorted(used.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
