"""Features of a user's own images, against plain loops over one image at a time.

The models are small and random, saved as Hugging Face saves them; nothing is downloaded.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers.models.vit import image_processing_pil_vit as vit_processor

from data_pipeline import extract as program
from data_pipeline import extraction
from data_pipeline.backbones import Backbone, Detector, read_preprocessing
from data_pipeline.errors import DataError
from data_pipeline.extraction import Budget, Parts
from data_pipeline.image_files import BadImage, ImageFile, find_images, load_ahead, open_image
from data_pipeline.region_captions import open_dataset
from data_pipeline.region_extractors import (
    DetectedRegions,
    Found,
    GridRegions,
    Pixels,
    roi_align,
    suppress,
)
from data_pipeline.sources.extracted import ExtractedFeatures, read_part

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
VISION = SMALL | dict(image_size=32, patch_size=8, initializer_range=0.5)
TEXT = SMALL | dict(vocab_size=64, bos_token_id=1, eos_token_id=2)


# Tokens before those of the patches.
NO_PATCHES = {"vit": 1, "dinov2": 1, "registers": 5, "deit": 2, "siglip": 0, "clip": 1, "resnet": 0}


def make_backbones():
    """One model for each name of NO_PATCHES."""
    t = transformers
    dinov2 = {k: v for k, v in VISION.items() if k != "intermediate_size"}
    registers = t.Dinov2WithRegistersConfig(**dinov2, num_register_tokens=4)
    stages = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return {
        "vit": t.ViTModel(t.ViTConfig(**VISION)),
        "dinov2": t.Dinov2Model(t.Dinov2Config(**dinov2)),
        "registers": t.Dinov2WithRegistersModel(registers),
        "deit": t.DeiTModel(t.DeiTConfig(**VISION)),
        "siglip": t.SiglipVisionModel(t.SiglipVisionConfig(**VISION)),
        "clip": t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=VISION)),
        "resnet": t.ResNetModel(t.ResNetConfig(**stages)),
    }


def make_yolos():
    """A detector whose boxes and classes differ, as those of a trained one do."""
    config = transformers.YolosConfig(
        **SMALL | dict(image_size=[64, 64], patch_size=16), num_detection_tokens=20, num_labels=5
    )
    config.id2label = dict(enumerate(["person", "dog", "ball", "kite", "boat"]))
    model = transformers.YolosForObjectDetection(config)
    with torch.no_grad():
        model.vit.embeddings.detection_tokens.normal_(0, 5)
        for head, factor in ((model.class_labels_classifier, 4), (model.bbox_predictor, 16)):
            for layer in head.layers:
                layer.weight.mul_(factor)
    return model


def save(model, directory, **preprocessing):
    values = dict(do_rescale=True, rescale_factor=1 / 255, do_normalize=True, resample=3)
    values |= dict(image_mean=MEAN, image_std=STD) | preprocessing
    model.eval().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory with a model in each of its directories."""
    transformers.utils.logging.set_verbosity_error()
    directory = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, model in make_backbones().items():
        save(model, directory / name)
    save(make_yolos(), directory / "yolos", size={"shortest_edge": 64, "longest_edge": 96})
    return directory


def draw(path, seed, size=(60, 44)):
    """A noisy image with a rectangle in it, saved by the ending of its name."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 120, (size[1], size[0], 3), np.uint8))
    x, y = rng.integers(0, 20, 2).tolist()
    ImageDraw.Draw(image).rectangle((x, y, x + 25, y + 18), fill=(250, 60 * seed % 255, 10))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


def write_captions(path, names, captions=2):
    lines = [f'{name},"image {name}, caption {k}"' for name in names for k in range(captions)]
    path.write_text("\n".join(["image,caption", *lines]) + "\n")


def scaled(image, width, height):
    """One image as the models get it: float32 [1, 3, height, width]."""
    values = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    return torch.from_numpy((values - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None]


def patches(models, name, image, side):
    """The map of one image, float32 [h, w, D], by the model alone."""
    model = transformers.AutoModel.from_pretrained(models / name).eval()
    options = (
        {} if name in ("dinov2", "registers", "resnet") else {"interpolate_pos_encoding": True}
    )
    with torch.no_grad():
        half = model.vision_model if name == "clip" else model
        output = half(scaled(image, side, side), **options).last_hidden_state[0].numpy()
    if name == "resnet":
        return output.transpose(1, 2, 0)
    return output[NO_PATCHES[name] :].reshape(side // 8, side // 8, -1)


def quarters(models, image):
    """Means of a 2 x 2 grid, float32 [4, D]."""
    return patches(models, "vit", image, 48).reshape(2, 3, 2, 3, -1).mean((1, 3)).reshape(4, -1)


# Of 6 x 6 patches: which ones a cell is the mean of.
BLOCKS = {
    0: [(i, i + 1) for i in range(6)],
    1: [(0, 6)],
    3: [(0, 2), (2, 4), (4, 6)],
    4: [(0, 2), (1, 3), (3, 5), (4, 6)],
}


@pytest.mark.parametrize("name", NO_PATCHES)
def test_cells_are_means_of_patches(models, tmp_path, name):
    images = [draw(tmp_path / f"{i}.png", i, size) for i, size in enumerate([(60, 44), (31, 80)])]
    expected = [patches(models, name, image, 48) for image in images]
    backbone = Backbone(str(models / name), 48, CPU)
    for grid, blocks in BLOCKS.items():
        extractor = GridRegions(backbone, grid)
        found = extractor.extract([extractor.load(tmp_path / f"{i}.png") for i in range(2)])
        cells = [(r, c) for r in blocks for c in blocks]
        boxes = [(c / 6, a / 6, d / 6, b / 6) for (a, b), (c, d) in cells]
        for grid_map, regions in zip(expected, found, strict=True):
            means = [grid_map[a:b, c:d].mean((0, 1)) for (a, b), (c, d) in cells]
            np.testing.assert_allclose(regions.features, means, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(regions.boxes, boxes, rtol=1e-6)
            assert len(regions.labels) == 0
        assert (extractor.width, extractor.most, extractor.labels) == (16, len(cells), [])


def test_pixels_are_those_of_the_models_own_processor(models):
    processor = vit_processor.ViTImageProcessorPil(
        image_mean=MEAN, image_std=STD, size={"height": 24, "width": 24}
    )
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    found = read_preprocessing(str(models / "vit")).pixels(image[None], CPU)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_preprocessing_of_older_and_other_files(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"size": 800, "max_size": 1333, "do_normalize": False}))
    found = read_preprocessing(str(tmp_path))
    assert (found.mean, found.std, found.scale, found.resample) == ((0,) * 3, (1,) * 3, 1 / 255, 3)
    # The shorter side becomes 800, unless the longer one would be more than 1333.
    assert [found.target(640, 480), found.target(1200, 400)] == [(1067, 800), (1333, 444)]
    assert found.target(640, 480, multiple=16) == (1056, 800)
    path.write_text(
        json.dumps({"size": {"height": 640, "width": 320}, "do_flip_channel_order": True})
    )
    found = read_preprocessing(str(tmp_path))
    assert found.target(100, 900) == (320, 640)
    blue = found.pixels(np.array([[[[0, 0, 255]]]], np.uint8), CPU)
    np.testing.assert_allclose(blue[0, :, 0, 0], [1, 0, 0])


def test_boxes_are_averaged_as_in_a_loop(models):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 5, 7)).astype(np.float32)
    boxes = np.array([[0, 0, 1, 1], [0.2, 0.1, 0.9, 0.3], [0.5, 0.5, 0.52, 0.9]], np.float32)
    expected = np.zeros((3, 3))
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(np.float64)):
        for i in range(14):
            for j in range(14):
                # In cells, whose values lie in their middle; beyond it the edge goes on.
                y = np.clip((y1 + (y2 - y1) * (i + 0.5) / 14) * 5 - 0.5, 0, 4)
                x = np.clip((x1 + (x2 - x1) * (j + 0.5) / 14) * 7 - 0.5, 0, 6)
                a, b = min(int(y), 3), min(int(x), 5)
                v, u = y - a, x - b
                corners = (1 - v) * (1 - u) * features[:, a, b] + v * u * features[:, a + 1, b + 1]
                corners += (1 - v) * u * features[:, a, b + 1] + v * (1 - u) * features[:, a + 1, b]
                expected[number] += corners / 14**2
    found = roi_align(torch.from_numpy(features), torch.from_numpy(boxes))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def loop_of_suppression(boxes, scores, most):
    """Indices, best first, of boxes that share less than 0.7 of their union with any better one."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        x1, y1, x2, y2 = boxes[i]
        alone = True
        for k in kept:
            a1, b1, a2, b2 = boxes[k]
            shared = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared
            alone = alone and shared / union < 0.7
        if alone and np.isfinite(scores[i]) and x2 > x1 and y2 > y1 and len(kept) < most:
            kept.append(i)
    return kept


@pytest.mark.parametrize("most", [3, 100])
def test_suppression_is_greedy(most):
    rng = np.random.default_rng(most)
    corners = rng.uniform(0, 0.2, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.3, 0.6, (60, 2))], 1)
    boxes[5, 2] = boxes[5, 0]
    scores = rng.uniform(size=60)
    scores[[5, 7]] = 2, -np.inf
    expected = loop_of_suppression(boxes.tolist(), scores.tolist(), most)
    assert suppress(boxes.astype(np.float32), scores, most).tolist() == expected
    assert 1 < len(expected) < 60


def test_detected_regions(models, tmp_path):
    images = [draw(tmp_path / f"{i}.png", i, size) for i, size in enumerate([(60, 44), (31, 80)])]
    detector = Detector(str(models / "yolos"), CPU)
    extractor = DetectedRegions(Backbone(str(models / "vit"), 48, CPU), detector, 6, 0.05)
    found = extractor.extract([extractor.load(tmp_path / f"{i}.png") for i in range(2)])
    model = transformers.AutoModelForObjectDetection.from_pretrained(models / "yolos").eval()
    # Shorter side 64, multiples of the patches of 16; the longer side would be 165 of at most 96.
    targets = [(80, 64), (32, 96)]
    for image, target, regions in zip(images, targets, found, strict=True):
        with torch.no_grad():
            output = model(scaled(image, *target))
        logits, raw = output.logits[0].double().numpy(), output.pred_boxes[0].double().numpy()
        scores, labels, boxes = [], [], []
        for row, (x, y, w, h) in zip(logits, raw, strict=True):
            shares = np.exp(row) / np.exp(row).sum()
            labels.append(int(shares[:5].argmax()))
            scores.append(shares[:5].max() if shares[:5].max() >= 0.05 else -np.inf)
            boxes.append(np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, 1))
        kept = loop_of_suppression(boxes, scores, 6)
        np.testing.assert_allclose(regions.boxes, np.array(boxes)[kept], atol=1e-5)
        assert regions.labels.tolist() == np.array(labels)[kept].tolist()
        features = patches(models, "vit", image, 48).transpose(2, 0, 1)
        expected = roi_align(torch.from_numpy(features), torch.from_numpy(regions.boxes))
        np.testing.assert_allclose(regions.features, expected, rtol=1e-4, atol=1e-4)
    assert len(found[0].boxes) > 1
    assert extractor.labels == ["person", "dog", "ball", "kite", "boat"]


def test_where_nothing_is_found_the_whole_image_is_a_region(models, tmp_path):
    draw(tmp_path / "a.png", 1)
    detector = Detector(str(models / "yolos"), CPU)
    extractor = DetectedRegions(Backbone(str(models / "vit"), 48, CPU), detector, 6, 1.0)
    (regions,) = extractor.extract([extractor.load(tmp_path / "a.png")])
    assert (regions.boxes.tolist(), regions.labels.tolist()) == ([[0, 0, 1, 1]], [-1])
    assert regions.features.shape == (1, 16)


def test_detectors_without_a_class_for_nothing(tmp_path):
    """RT-DETR's scores are of each class by itself."""
    stages = dict(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic")
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(
            **stages, out_features=["stage2", "stage3", "stage4"]
        ),
        **dict(encoder_hidden_dim=16, encoder_in_channels=[8] * 3, encoder_attention_heads=2),
        **dict(decoder_in_channels=[16] * 3, d_model=16, decoder_attention_heads=2),
        **dict(encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16),
        **dict(num_feature_levels=3, num_queries=7, num_labels=5),
    )
    model = transformers.RTDetrForObjectDetection(config)
    save(model, tmp_path, do_normalize=False, size={"height": 64, "width": 64})
    detector = Detector(str(tmp_path), CPU)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    (found,) = detector.detect(image)
    with torch.no_grad():
        output = model.eval()(torch.from_numpy(image).permute(0, 3, 1, 2) / np.float32(255))
    shares = 1 / (1 + np.exp(-output.logits[0].numpy()))
    np.testing.assert_allclose(found.scores, shares.max(-1), rtol=1e-4)
    assert found.labels.tolist() == shares.argmax(-1).tolist()


def as_pickle(directory):
    path = directory / "model.safetensors"
    torch.save(safetensors.torch.load_file(path), directory / "pytorch_model.bin")
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


UNFIT = {
    "pickle": (as_pickle, {}, "model {} can't be used"),
    "cut weights": (lambda d: cut(d / "model.safetensors"), {}, "model {} can't be used"),
    "config": (lambda d: (d / "config.json").unlink(), {}, "model {} can't be used"),
    "no preprocessing": (
        lambda d: (d / "preprocessor_config.json").unlink(),
        {},
        "preprocessor_config.json of {} can't be used",
    ),
    "preprocessing": (
        lambda d: (d / "preprocessor_config.json").write_text('{"image_mean": [1, 2]}'),
        {},
        "preprocessor_config.json of {} can't be used",
    ),
    "size": (lambda d: None, {"image_size": 50}, "--image-size=50 is not a multiple of 8"),
    "grid": (lambda d: None, {"grid": 7}, "--grid=7 is more than the 6 x 6 cells of {}"),
}


@pytest.mark.parametrize("mistake", UNFIT)
def test_unfit_models_are_named_in_one_line(models, tmp_path, mistake):
    damage, options, expected = UNFIT[mistake]
    directory = tmp_path / "model"
    shutil.copytree(models / "vit", directory)
    damage(directory)
    with pytest.raises(DataError) as caught:
        GridRegions(
            Backbone(str(directory), options.get("image_size", 48), CPU), options.get("grid", 2)
        )
    assert expected.format(directory) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_lack_a_tensor_are_refused(models, tmp_path):
    shutil.copytree(models / "vit", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    lost = next(name for name in tensors if "layer" in name)
    del tensors[lost]
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(DataError, match="model lack 1 tensors of ViTModel, e.g. layers.0"):
        Backbone(str(tmp_path / "model"), 48, CPU)


def test_a_checkpoint_without_a_pooler_is_the_same_model_each_time(tmp_path):
    """Classifiers are saved without the pooler that a bare ViT has, which is then random."""
    config = transformers.ViTConfig(
        **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 8, "image_size": 48, "patch_size": 8},
    )
    save(transformers.ViTForImageClassification(config), tmp_path / "classifier")
    settings = [
        GridRegions(Backbone(str(tmp_path / "classifier"), 48, CPU), 2).settings for _ in range(2)
    ]
    assert settings[0] == settings[1]


def test_detectors_and_texts_are_no_backbones(models, tmp_path):
    with pytest.raises(DataError, match="is a detector; give it as --detector"):
        Backbone(str(models / "yolos"), 64, CPU)
    config = transformers.BertConfig(**SMALL, vocab_size=50)
    save(transformers.BertModel(config), tmp_path)
    with pytest.raises(DataError, match=r"\(BertModel\) does not take images"):
        Backbone(str(tmp_path), 64, CPU)


def test_files_are_found_below_their_directory_only(tmp_path):
    images, outside = tmp_path / "images", tmp_path / "outside.png"
    draw(outside, 0)
    draw(images / "sub" / "a.png", 1)
    (images / "link.png").symlink_to(outside)
    (images / "inner.png").symlink_to(images / "sub" / "a.png")
    (images / "loop.png").symlink_to(images / "loop.png")
    os.mkfifo(images / "pipe.png")
    names = ["sub/a.png", "inner.png", "link.png", "../outside.png", str(outside), "pipe.png"]
    found = find_images(images, [*names, "sub", "none.png", "loop.png", "x" * 999, "sub/a.png"])
    assert list(found.files) == ["sub/a.png", "inner.png"]
    assert found.files["sub/a.png"].num_bytes == (images / "sub" / "a.png").stat().st_size
    reasons = {name: why for name, why in found.bad.items() if len(name) < 99}
    leads_out = f"leads out of {images}"
    assert {k: v for k, v in reasons.items() if k != "loop.png"} == {
        **dict.fromkeys(["link.png", "../outside.png", str(outside)], leads_out),
        **{"pipe.png": "no file", "sub": "no file", "none.png": "missing"},
    }
    assert "loop" in reasons["loop.png"].lower() or "links" in reasons["loop.png"]
    assert len(found.bad) == 8


def test_captions_may_not_name_files_elsewhere(models, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    write_captions(tmp_path / "captions.csv", ["../secret.png"])
    assert run(models, tmp_path) == 2
    assert "'../secret.png' leads out of its directory" in capsys.readouterr().err


def test_images_are_upright_and_rgb(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 20:] = 255, 0, 0  # red on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the right side is below
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image, size = open_image(tmp_path / "a.png")
    assert (image.size, size, image.mode) == ((20, 30), (20, 30), "RGB")
    np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels, -1))
    # A JPEG is decoded at a smaller scale; its size is still that of the file.
    Image.new("RGB", (1600, 800)).save(tmp_path / "b.jpg", exif=exif)
    image, size = open_image(tmp_path / "b.jpg", 100)
    assert (image.size, size) == ((200, 400), (800, 1600))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    gray = np.tile(np.array([0, 255], np.uint8), (4, 2))
    image = Image.fromarray(gray)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    (image if mode == "I;16" else image.convert(mode)).save(path)
    found = np.asarray(open_image(path).image)
    np.testing.assert_array_equal(found, np.repeat(gray[..., None], 3, axis=-1))


def test_bad_images_are_told_and_never_waited_for(tmp_path, monkeypatch):
    draw(tmp_path / "a.jpg", 0)
    draw(tmp_path / "a.png", 0)
    for name in ("a.jpg", "a.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "b.jpg").write_text("no image")
    (tmp_path / "c.jpg").touch()
    (tmp_path / "d.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("a.jpg", "a.png", "b.jpg", "c.jpg", "d.eps"):
        with pytest.raises(BadImage):
            open_image(tmp_path / name, 10)
    draw(tmp_path / "e.png", 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="DecompressionBombError"):
        open_image(tmp_path / "e.png")


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "bmp", "webp", "tiff"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_bytes_are_a_bad_image_or_an_rgb_one(tmp_path, ending, data):
    path = tmp_path / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    with warnings.catch_warnings(action="ignore"):
        try:
            image, size = open_image(path, 8)
        except BadImage as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert image.mode == "RGB" and min(*image.size, *size) >= 1


def test_a_failing_disk_makes_no_image_bad(models, ten, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", fail)
        assert run(models, ten) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: [Errno 5] Input/output error"
    assert not features_in(ten / "out")


def test_files_are_read_in_order_and_not_far_ahead():
    begun = []

    def load(number):
        begun.append(number)
        if number == 3:
            raise BadImage("broken")
        return number

    with load_ahead(load, range(100), 2, 5) as values:
        first = [next(values) for _ in range(6)]
        assert [*first[:3], str(first[3]), *first[4:]] == [0, 1, 2, "broken", 4, 5]
        time.sleep(0.05)
        assert len(begun) <= 12
    assert len(begun) <= 12


def run(models, directory, *options, backbone="vit", grid=2, out=None):
    """The program on directory/images and directory/captions.csv; its exit status."""
    return program.main(command(models, directory, *options, backbone=backbone, grid=grid, out=out))


def command(models, directory, *options, backbone="vit", grid=2, out=None):
    words = [directory / "images", "--captions", directory / "captions.csv", "--name", "mine"]
    words += ["--out", out or directory / "out", "--backbone", models / backbone]
    words += ["--image-size", 48, "--batch-size", 3, "--device", "cpu", "--dev", 0, "--test", 0]
    return [str(word) for word in [*words, *(["--grid", grid] if grid else []), *options]]


@pytest.fixture
def without_dataset(monkeypatch):
    """Features only."""
    monkeypatch.setattr(program, "_build", lambda args, captions, store, graphs: None)


@pytest.fixture
def ten(tmp_path):
    """Ten images with captions, none of them held out."""
    names = [f"{i}.png" for i in range(10)]
    for i, name in enumerate(names):
        draw(tmp_path / "images" / name, i)
    write_captions(tmp_path / "captions.csv", names)
    return tmp_path


def features_in(directory):
    """name -> bytes of every file with features."""
    paths = (directory / "extracted" / "mine").glob("part-*.npz")
    return {path.name: path.read_bytes() for path in sorted(paths)}


def test_eight_images_become_a_dataset(models, tmp_path, capsys):
    splits = ["train"] * 5 + ["dev"] * 2 + ["test"]
    names = [f"some/{i}.png" for i in range(8)]
    lines = ["image,caption,split"]
    for i, (name, split) in enumerate(zip(names, splits, strict=True)):
        draw(tmp_path / "images" / name, i, (60 + i, 44))
        lines += [f'{name},"image {i}, caption {k}",{split}' for k in range(i + 1)]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    assert run(models, tmp_path) == 0
    output = capsys.readouterr().out
    assert "--config=configs/own.py --config.data.name=mine" in output and "bad" not in output
    assert not (tmp_path / "out" / "extracted" / "mine" / "bad_images.txt").exists()
    builder = open_dataset(tmp_path / "out", "mine")
    assert (builder.info.metadata["feature_width"], builder.info.metadata["labels"]) == (16, [])
    i = 0
    for split in ("train", "dev", "test"):
        for record in builder.as_dataset(split).as_numpy_iterator():
            assert record["file_name"].decode() == names[i]
            texts = [text.decode() for text in record["captions"]]
            assert texts == [f"image {i}, caption {k}" for k in range(i + 1)]
            assert record["size"].tolist() == [60 + i, 44]
            halves = [(0, 0.5), (0.5, 1)]
            boxes = [[a, c, b, d] for c, d in halves for a, b in halves]
            np.testing.assert_allclose(record["boxes"], boxes, rtol=1e-6)
            image = Image.open(tmp_path / "images" / names[i])
            cells = patches(models, "vit", image, 48).reshape(2, 3, 2, 3, 16).mean((1, 3))
            np.testing.assert_allclose(
                record["regions"], cells.reshape(4, 16), rtol=2e-3, atol=1e-3
            )
            i += 1
    assert i == 8


def test_detected_classes_become_object_labels(models, ten, capsys):
    options = ("--detector", models / "yolos", "--regions", 4, "--least-score", 0.05)
    write_captions(ten / "captions.csv", ["0.png", "1.png"])
    assert run(models, ten, *options, grid=None) == 0
    builder = open_dataset(ten / "out", "mine")
    assert builder.info.metadata["labels"] == ["person", "dog", "ball", "kite", "boat"]
    detector = Detector(str(models / "yolos"), CPU)
    for record in builder.as_dataset("train").as_numpy_iterator():
        image = Image.open(ten / "images" / record["file_name"].decode())
        (seen,) = detector.detect(np.array(image.resize((80, 64), 3))[None])
        scores = np.where(seen.scores >= 0.05, seen.scores, -np.inf)
        kept = loop_of_suppression(seen.boxes.tolist(), scores.tolist(), 4)
        assert record["object_labels"].tolist() == seen.labels[kept].tolist()
        np.testing.assert_allclose(record["boxes"], seen.boxes[kept], atol=1e-5)


def test_bad_images_are_left_out_within_the_budget(models, ten, capsys):
    cut(ten / "images" / "3.png")
    (ten / "images" / "5.png").unlink()
    (ten / "images" / "7.png").write_text("no image")
    listed = ten / "out" / "extracted" / "mine" / "bad_images.txt"
    assert run(models, ten, "--max-bad", 2, "--part-images", 2) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 images are bad, more than --max-bad=2, the last one '7.png'" in error
    assert [line.split("\t")[0] for line in listed.read_text().splitlines()] == [
        *("5.png", "3.png", "7.png"),
    ]
    before = features_in(ten / "out")
    assert before
    assert run(models, ten, "--max-bad", 3, "--part-images", 2) == 0
    assert "3 bad images were left out" in capsys.readouterr().out
    assert before.items() <= features_in(ten / "out").items()
    builder = open_dataset(ten / "out", "mine")
    records = builder.as_dataset("train").as_numpy_iterator()
    kept = [record["file_name"].decode() for record in records]
    assert kept == [f"{i}.png" for i in (0, 1, 2, 4, 6, 8, 9)]
    assert listed.read_text().splitlines()[0] == "5.png\tmissing"


@pytest.mark.parametrize("mistake", ["missing", "damaged"])
def test_a_split_that_loses_all_of_its_images_is_an_error(models, ten, capsys, mistake):
    lines = [f"{i}.png,A picture,{'dev' if i < 2 else 'train'}" for i in range(10)]
    (ten / "captions.csv").write_text("\n".join(["image,caption,split", *lines]))
    for name in ("0.png", "1.png"):
        path = ten / "images" / name
        path.unlink() if mistake == "missing" else path.write_text("no image")
    assert run(models, ten) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "split dev keeps none of its 2 images, such as '0.png', which is missing or" in error
    assert not (ten / "out" / "region_captions").exists()
    # What is missing is known before any work.
    assert bool(features_in(ten / "out")) == (mistake == "damaged")
    draw(ten / "images" / "0.png", 0)
    assert run(models, ten) == 0
    assert open_dataset(ten / "out", "mine").info.splits["dev"].num_examples == 1


def test_images_that_come_later_or_change_are_extracted(models, ten, without_dataset):
    image = (ten / "images" / "5.png").read_bytes()
    (ten / "images" / "5.png").unlink()
    assert run(models, ten, "--part-images", 4) == 0
    before = features_in(ten / "out")
    assert len(before) == 3
    (ten / "images" / "5.png").write_bytes(image)
    draw(ten / "images" / "9.png", 100)
    assert run(models, ten, "--part-images", 4) == 0
    after = features_in(ten / "out")
    assert [before[name] == after.get(name) for name in before] == [True, True, False]
    store = ExtractedFeatures(ten / "out" / "extracted" / "mine")
    assert sorted(store.names()) == [f"{i}.png" for i in range(10)]
    expected = quarters(models, Image.open(ten / "images" / "9.png"))
    np.testing.assert_allclose(store.read("9.png").features, expected, rtol=2e-3, atol=1e-3)


KILLED = """
import os, signal, sys
from data_pipeline import extract
from data_pipeline.sources import extracted

replace = extracted.os.replace

def kill(source, target):
    if "part-00003" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

extracted.os.replace = kill
extract.main(sys.argv[1:])
"""


def test_a_run_that_is_stopped_and_killed_ends_with_the_same_bytes(
    models, ten, without_dataset, monkeypatch, capsys
):
    options = ("--part-images", 2)
    directory = ten / "out" / "extracted" / "mine"

    def add_and_stop(self, part):
        add(self, part)
        os.kill(os.getpid(), signal.SIGTERM)

    add = Parts.add
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "add", add_and_stop)
        assert run(models, ten, *options) == 128 + signal.SIGTERM
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped; the same command continues where it was"
    assert list(features_in(ten / "out")) == ["part-00000.npz"]
    # kill -9 before the fourth part gets its name.
    words = [sys.executable, "-c", KILLED, *command(models, ten, *options)]
    killed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(features_in(ten / "out")) == 3 and (directory / ".part-00003.npz").exists()
    assert run(models, ten, *options) == 0
    assert not (directory / ".part-00003.npz").exists()
    assert run(models, ten, *options, out=ten / "whole") == 0
    found = features_in(ten / "out")
    assert len(found) == 5 and found == features_in(ten / "whole")


def test_damaged_parts_are_made_again(models, ten, without_dataset, capsys):
    assert run(models, ten, "--part-images", 4) == 0
    before = features_in(ten / "out")
    path = ten / "out" / "extracted" / "mine" / "part-00001.npz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    for damaged in (whole[:-40], changed, b"", b"PK" + bytes(99)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"part-00001.npz is damaged \(.*; the command that"):
            read_part(path)
        assert run(models, ten, "--part-images", 4) == 0
        message = "part-00001.npz is damaged; its images are extracted again"
        assert message in capsys.readouterr().err
        assert features_in(ten / "out") == before


def test_other_settings_are_an_error(models, ten, without_dataset, capsys):
    assert run(models, ten) == 0
    before = features_in(ten / "out")
    for options, message in [
        (dict(grid=3), "features with grid=2, and now it is 3"),
        (dict(backbone="dinov2"), "features with backbone={"),
    ]:
        assert run(models, ten, **options) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error and "--overwrite" in error
        assert features_in(ten / "out") == before
    # The same settings: nothing is made again, wherever the model lies.
    shutil.copytree(models / "vit", ten / "vit")
    part = ten / "out" / "extracted" / "mine" / "part-00000.npz"
    made = part.stat().st_mtime_ns
    assert run(ten, ten, "--overwrite") == 0
    assert part.stat().st_mtime_ns == made
    assert run(models, ten, "--overwrite", grid=3) == 0
    assert len(read_part(part).boxes) == 10 * 9


def test_parts_without_settings_are_not_believed(models, ten, without_dataset, capsys):
    assert run(models, ten) == 0
    path = ten / "out" / "extracted" / "mine" / "settings.json"
    for content in (None, "{", "[]"):
        path.unlink() if content is None else path.write_text(content)
        assert run(models, ten) == 2
        assert "--overwrite" in capsys.readouterr().err
    assert run(models, ten, "--overwrite") == 0


def test_only_one_process_extracts_at_a_time(models, ten, capsys):
    with extraction.alone(ten / "out" / "extracted" / "mine"):
        assert run(models, ten) == 2
    assert "another process extracts to" in capsys.readouterr().err


class Endless:
    """An extractor whose features are too large for float16, for every third image."""

    labels: tuple = ()
    width, most = 2, 1

    def load(self, path):
        return Pixels((4, 4), np.zeros((1, 1, 3), np.uint8))

    def extract(self, images):
        self.count = getattr(self, "count", -1) + 1
        value = 1e6 if self.count == 1 else 1.0
        features = np.full((1, 2), value, np.float32)
        return [Found(features, np.array([[0, 0, 1, 1]], np.float32), np.zeros(0, np.int32))]


def test_features_that_are_not_finite_make_an_image_bad(tmp_path):
    files = {name: ImageFile(tmp_path / name, 1) for name in "abc"}
    parts = Parts(tmp_path, {}, files)
    budget = Budget(1, tmp_path / "bad.txt")
    extraction.extract(files, Endless(), parts, budget, batch_size=1, part_images=2)
    assert list(budget.bad) == ["b"] and "1000000.0" in budget.bad["b"]
    assert sorted(ExtractedFeatures(tmp_path).names()) == ["a", "c"]


def test_what_is_missing_is_said_in_one_line(models, ten, capsys, monkeypatch):
    write_captions(ten / "captions.csv", ["a.png", "b.png"])
    assert run(models, ten) == 2
    error = capsys.readouterr().err
    assert "none of the 2 images that have captions is in" in error and "'a.png' (missing)" in error
    write_captions(ten / "captions.csv", ["0.png"])
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    assert run(models, ten) == 2
    assert 'needs PyTorch: pip install "xmodal_jax[extract]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "x", "--grid", "3"], "--grid is without --detector"),
        (["--regions", "3"], "--regions is of the boxes that a --detector finds"),
        (["--batch-size", "0"], "0 is not positive"),
        (["--max-bad", "-1"], "--max-bad: -1 is negative"),
        (["--image-size", "1000000"], "1000000 is more than 4096 pixels"),
        (["--detector", "x", "--least-score", "1.5"], "1.5 is no score; give a number from 0 to 1"),
        (["--detector", "x", "--least-score", "nan"], "nan is no score"),
    ],
)
def test_flags_that_do_not_fit(models, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(models, tmp_path, *options, grid=None)
    assert message in capsys.readouterr().err


def test_odd_names_are_told_before_the_work(models, ten, capsys):
    assert run(models, ten, "--name", "../x") == 2
    assert "--name '../x' is no name" in capsys.readouterr().err


def test_features_are_not_written_to_a_bucket(models, ten, capsys):
    assert run(models, ten, out="gs://bucket/data") == 2
    assert "error: --out=gs://bucket/data: features are kept on a disk" in capsys.readouterr().err
    assert not Path("gs:").exists()


def test_images_may_lie_in_the_folder_that_karpathys_file_names(tmp_path):
    for name, side in (("val2014/a.png", 20), ("b.png", 30), ("val2014/b.png", 40)):
        draw(tmp_path / "images" / name, 0, (60, side))
    names, folder = ["a.png", "b.png", "c.png"], {"a.png": "val2014", "b.png": "val2014"}
    found = find_images(tmp_path / "images", names, folder | {"c.png": "val2014"})
    root = tmp_path / "images"
    assert {name: file.path for name, file in found.files.items()} == {
        **{"a.png": root / "val2014" / "a.png", "b.png": root / "b.png"},
    }
    assert found.bad == {"c.png": "missing"}
    draw(tmp_path / "secret.png", 0)
    found = find_images(root, ["secret.png"], {"secret.png": "val2014/../.."})
    assert found.bad == {"secret.png": f"leads out of {root}"}


def test_detected_objects_of_karpathys_images_get_scene_graphs(models, tmp_path, capsys):
    sentences = [{"raw": "A dog."}]
    image = {"filename": "a.png", "filepath": "val2014", "cocoid": 7, "split": "train"}
    content = {"images": [image | {"sentences": sentences}]}
    (tmp_path / "captions.csv").write_text("")
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    picture = draw(tmp_path / "images" / "val2014" / "a.png", 0)
    (seen,) = Detector(str(models / "yolos"), CPU).detect(
        np.array(picture.resize((80, 64), Image.Resampling.BICUBIC))[None]
    )
    kept = loop_of_suppression(seen.boxes.tolist(), seen.scores.tolist(), 4)
    boxes = (seen.boxes[kept] * [60, 44, 60, 44]).tolist()
    graph = {"id": 7, "boxes": boxes[:2][::-1], "relations": [[0, "on", 1, 0.5]]}
    (tmp_path / "graphs.jsonl").write_text(json.dumps(graph))
    options = ["--detector", models / "yolos", "--regions", 4, "--least-score", 0]
    options += ["--scene-graphs", tmp_path / "graphs.jsonl"]
    words = command(models, tmp_path, *options, grid=None)
    words[words.index("--captions") + 1] = str(tmp_path / "dataset.json")
    assert program.main(words) == 0, capsys.readouterr().err
    builder = open_dataset(tmp_path / "out", "mine")
    assert builder.info.metadata["labels"] == ["person", "dog", "ball", "kite", "boat"]
    (record,) = builder.as_dataset("train").as_numpy_iterator()
    assert record["relations"].tolist() == [[1, 0, 0]]
    assert record["object_labels"].tolist() == seen.labels[kept].tolist()


def test_help_shows_a_captions_file():
    text = program._parser().format_help()
    assert "image,caption\n" in text and "--backbone facebook/dinov2-small" in text
