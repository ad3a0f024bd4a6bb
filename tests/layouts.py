"""A few images with captions and regions, and writers of them in every layout of the field."""

import base64
import csv
import dataclasses
import gzip
import json
import pickle

import numpy as np

WIDTH = 3
RESTVAL = "restval"


@dataclasses.dataclass
class Image:
    """What is known of an image; boxes are in pixels."""

    image_id: int
    split: str
    file_name: str
    size: tuple[int, int]
    features: np.ndarray  # float32 [R, WIDTH], exact in float16
    boxes: np.ndarray  # float32 [R, 4]
    captions: list[str]
    relations: list[list]  # [subject, predicate, object, confidence]
    labels: list[str]

    @property
    def stem(self) -> str:
        return self.file_name.rsplit(".", 1)[0]


def make_images(count=9, seed=0):
    """Images of three splits and "restval", with different numbers of regions and captions."""
    rng = np.random.default_rng(seed)
    splits = ["train", "train", RESTVAL, "dev", "test"]
    images = []
    for i in range(count):
        regions, size = 2 + i % 3, (200 + 10 * i, 100 + i)
        low = rng.uniform(0, 0.4, (regions, 2)) * size
        high = low + rng.uniform(0.2, 0.5, (regions, 2)) * size
        images.append(
            Image(
                image_id=1000 + 17 * i,
                split=splits[i % len(splits)],
                file_name=f"COCO_val2014_{i:04d}.jpg",
                size=size,
                features=rng.integers(-8, 8, (regions, WIDTH)).astype(np.float32) / 4,
                boxes=np.concatenate([low, high], 1).astype(np.float32),
                captions=[f"A dog number {k} of image {i}, sitting." for k in range(1 + i % 5)],
                relations=[[0, "on", 1, 0.75], [1, "near", 0, 0.5]][: i % 3],
                labels=[f"thing{k}" for k in range(regions)],
            )
        )
    return images


def write_karpathy(path, images, *, coco=True):
    """dataset_coco.json; without `coco` as of Flickr, where images have no cocoid."""
    content = {"dataset": "x", "images": []}
    for row, image in enumerate(images):
        sentences = [{"raw": text, "tokens": text.split()} for text in image.captions]
        split = "val" if image.split == "dev" else image.split
        entry = {"filename": image.file_name, "imgid": row, "split": split, "sentences": sentences}
        content["images"].append(entry | ({"cocoid": image.image_id} if coco else {}))
    text = json.dumps(content)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def write_coco(path, images):
    """COCO's captions JSON; the captions of an image lie apart, ids are 10 * image + number."""
    content = {
        "info": {"images": "none"},
        "images": [
            {
                **{"id": image.image_id, "file_name": image.file_name},
                **{"width": image.size[0], "height": image.size[1]},
            }
            for image in images
        ],
        "annotations": [
            {"id": 10 * image.image_id + k, "image_id": image.image_id, "caption": text + "\n"}
            for k in range(5)
            for image in images
            for text in image.captions[k : k + 1]
        ],
    }
    path.write_text(json.dumps(content))


def write_vsepp(directory, images):
    """The id files of VSE++ beside two of COCO's files."""
    directory.mkdir()
    half = len(images) // 2
    write_coco(directory / "captions_train2014.json", images[:half])
    write_coco(directory / "captions_val2014.json", images[half:])
    for split in ("train", RESTVAL, "dev", "test"):
        own = [image for image in images if image.split == split]
        ids = [10 * image.image_id + k for image in own for k in range(len(image.captions))]
        np.save(directory / f"coco_{split}_ids.npy", np.array(ids))


def write_csv(path, images, *, splits=True, ids=True):
    """A table with one line a caption, those of an image not together."""
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        columns = ["image", "caption", *["split"] * splits, *["image_id"] * ids]
        delimiter = "\t" if path.suffix == ".tsv" else ","
        rows = csv.DictWriter(stream, columns, delimiter=delimiter, extrasaction="ignore")
        rows.writeheader()
        for k in range(5):
            for image in images:
                fields = {"split": image.split, "image_id": image.image_id}
                for text in image.captions[k : k + 1]:
                    rows.writerow({"image": image.file_name, "caption": text} | fields)


def write_jsonl(path, images):
    """A table with one object an image."""
    lines = [
        json.dumps(
            {
                **{"image": image.file_name, "captions": image.captions},
                **{"split": image.split, "image_id": image.image_id},
            }
        )
        for image in images
    ]
    path.write_text("\n".join(lines) + "\n")


def tsv_line(image, name=None):
    """A line of bottom-up attention's TSV file."""
    fields = [name or image.image_id, *image.size, len(image.boxes)]
    fields += [base64.b64encode(a.tobytes()).decode() for a in (image.boxes, image.features)]
    return "\t".join(map(str, fields)) + "\n"


def write_tsv(path, images):
    """Bottom-up attention's TSV file."""
    path.write_text("".join(tsv_line(image) for image in images))


def write_folders(directory, images, name=lambda row, image: image.image_id):
    """bu_att/NAME.npz and bu_box/NAME.npy."""
    for ending in ("att", "box"):
        (directory / f"bu_{ending}").mkdir(parents=True)
    for row, image in enumerate(images):
        np.savez_compressed(directory / "bu_att" / f"{name(row, image)}.npz", feat=image.features)
        np.save(directory / "bu_box" / f"{name(row, image)}.npy", image.boxes)


def write_sizes(path, images):
    """TERAN's sizes.pkl."""
    path.write_bytes(pickle.dumps([image.size for image in images], protocol=2))


def write_graphs(path, images, *, shuffled=False):
    """Scene graphs in JSONL; `shuffled`: objects in another order than the regions."""
    lines = []
    for image in images:
        order = list(range(len(image.boxes)))[:: -1 if shuffled else 1]
        place = {region: number for number, region in enumerate(order)}
        lines.append(
            json.dumps(
                {
                    "id": image.image_id,
                    "boxes": image.boxes[order].tolist(),
                    "labels": [image.labels[region] for region in order],
                    "relations": [[place[s], p, place[o], c] for s, p, o, c in image.relations],
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")
