"""Every layout there and back: written, built by the command line, and read as it was."""

import dataclasses
import json
import os

import numpy as np
import pytest

from data_pipeline import build
from data_pipeline.region_captions import open_dataset
from tests import layouts

GRAPHED = {"relations", "labels"}


def records(data_dir, name, split):
    """Images of a split as plain values."""
    builder = open_dataset(data_dir, name)
    if split not in builder.info.splits:
        return []
    return list(builder.as_dataset(split=split).as_numpy_iterator())


def assert_same(data_dir, images, *, name="tiny", restval="train", ids=True, boxes=True):
    """The dataset has these images, with restval's behind those of its split."""
    builder = open_dataset(data_dir, name)
    predicates = builder.info.metadata["predicates"]
    for split in ("train", "dev", "test"):
        expected = [image for image in images if image.split == split]
        if split == restval:
            expected += [image for image in images if image.split == layouts.RESTVAL]
        found = records(data_dir, name, split)
        assert [r["file_name"].decode() for r in found] == [i.file_name for i in expected]
        first = 0
        for record, image in zip(found, expected, strict=True):
            if ids:
                assert record["image_id"] == image.image_id
            assert [text.decode() for text in record["captions"]] == image.captions
            assert record["first_caption"] == first
            first += len(image.captions)
            np.testing.assert_array_equal(record["regions"], image.features)
            np.testing.assert_array_equal(record["size"], image.size)
            if boxes:
                scale = np.tile(np.array(image.size, np.float32), 2)
                np.testing.assert_allclose(record["boxes"], image.boxes / scale, rtol=1e-6)
            if predicates:
                found_relations = [
                    [s, predicates[p], o, float(score)]
                    for (s, p, o), score in zip(
                        record["relations"], record["relation_scores"], strict=True
                    )
                ]
                assert found_relations == image.relations


NAMED = ("--name", "tiny", "--check")


def run(*words, expect=0):
    assert build.main([str(word) for word in words]) == expect


@pytest.fixture
def images():
    return layouts.make_images()


def build_into(tmp_path, *words):
    run(*words, "--name", "tiny", "--out", tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("restval", ["train", "dev", ""])
@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_bottom_up_tsv_with_karpathys_splits(tmp_path, images, restval, ending):
    half = len(images) // 2
    # In another order than the captions: the two are joined by id.
    layouts.write_tsv(tmp_path / "a.tsv", images[half:])
    layouts.write_tsv(tmp_path / "b.tsv", images[:half])
    captions = tmp_path / f"dataset_coco.{ending}"
    layouts.write_karpathy(captions, images)
    files = (tmp_path / "a.tsv", tmp_path / "b.tsv")
    words = ("bottom-up", *files, "--captions", captions, "--restval", restval)
    assert_same(build_into(tmp_path, *words), images, restval=restval)


def test_folders_by_row_with_pickled_sizes(tmp_path, images):
    """TERAN's Flickr30K: files are called by the row of the JSON."""
    layouts.write_folders(tmp_path / "features_36", images, name=lambda row, image: row)
    layouts.write_karpathy(tmp_path / "dataset.json", images, coco=False)
    layouts.write_sizes(tmp_path / "sizes.pkl", images)
    words = ("--captions", tmp_path / "dataset.json", "--sizes", tmp_path / "sizes.pkl")
    data = build_into(tmp_path, "folders", tmp_path / "features_36", *words)
    assert_same(data, images, ids=False)
    rows = {image.file_name: row for row, image in enumerate(images)}
    for record in records(data, "tiny", "train"):
        assert record["image_id"] == rows[record["file_name"].decode()]


@pytest.mark.parametrize("form", ["npy", "json", "pkl"])
def test_sizes_that_are_missing_or_a_pipe(tmp_path, images, form, capsys):
    layouts.write_folders(tmp_path / "f", images)
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    path = tmp_path / f"sizes.{form}"
    words = ("folders", tmp_path / "f", "--captions", tmp_path / "dataset.json", "--sizes", path)
    run(*words, "--name", "tiny", expect=2)
    assert f"{path} does not exist; give another --sizes" in capsys.readouterr().err
    os.mkfifo(path)
    run(*words, "--name", "tiny", expect=2)
    assert f"{path} is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("others", [(), ("--first", "train=1"), ("--restval", "")])
def test_sizes_of_other_images_are_refused(tmp_path, images, capsys, others):
    layouts.write_folders(tmp_path / "f", images)
    layouts.write_karpathy(tmp_path / "dataset.json", images[:8])
    words = ["folders", tmp_path / "f", "--captions", tmp_path / "dataset.json", "--sizes"]
    words += [tmp_path / "sizes.pkl", "--name", "tiny", "--out", tmp_path / "data", *others]
    for count in (7, 9):
        layouts.write_sizes(tmp_path / "sizes.pkl", images[:count])
        run(*words, expect=2)
        expected = f"{tmp_path / 'sizes.pkl'} has {count} sizes and {tmp_path / 'dataset.json'} 8"
        assert expected in capsys.readouterr().err
    layouts.write_sizes(tmp_path / "sizes.pkl", images[:8])
    run(*words)
    layouts.write_vsepp(tmp_path / "ids", images)
    words[words.index("--captions") + 1] = tmp_path / "ids"
    run(*words, expect=2)
    assert f"and {tmp_path / 'ids'} is a directory with several" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["npy", "json"])
def test_sizes_in_other_forms(tmp_path, images, form):
    layouts.write_folders(tmp_path / "f", images, name=lambda row, image: image.stem)
    layouts.write_karpathy(tmp_path / "dataset.json", images, coco=False)
    path = tmp_path / f"sizes.{form}"
    sizes = [image.size for image in images]
    np.save(path, sizes) if form == "npy" else path.write_text(json.dumps(sizes))
    words = ("--captions", tmp_path / "dataset.json", "--sizes", path)
    assert_same(build_into(tmp_path, "folders", tmp_path / "f", *words), images, ids=False)


def test_folders_with_the_ids_of_vsepp(tmp_path, images):
    """TERAN's COCO: caption ids, COCO's JSON of 2014, sizes from there."""
    layouts.write_folders(tmp_path / "features_36", images)
    layouts.write_vsepp(tmp_path / "annotations", images)
    words = ("--captions", tmp_path / "annotations")
    assert_same(build_into(tmp_path, "folders", tmp_path / "features_36", *words), images)


def test_cocos_captions_one_file_a_split(tmp_path, images):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    words = []
    for split in ("train", "dev", "test"):
        own = [i for i in images if i.split == split]
        own += [i for i in images if (split, i.split) == ("train", layouts.RESTVAL)]
        layouts.write_coco(tmp_path / f"{split}.json", own)
        words.append(f"{split}={tmp_path / f'{split}.json'}")
    data = build_into(tmp_path, "bottom-up", tmp_path / "all.tsv", "--captions", *words)
    assert_same(data, images)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_tables(tmp_path, images, ending):
    layouts.write_tsv(tmp_path / "features.tsv", images)
    path = tmp_path / f"captions.{ending}"
    (layouts.write_jsonl if ending == "jsonl" else layouts.write_csv)(path, images)
    words = ("bottom-up", tmp_path / "features.tsv", "--captions", path)
    assert_same(build_into(tmp_path, *words), images)


def test_a_table_without_splits_is_divided_by_names(tmp_path):
    images = layouts.make_images(60)
    layouts.write_folders(tmp_path / "f", images, name=lambda row, image: image.stem)
    words = ("folders", tmp_path / "f", "--sizes", tmp_path / "sizes.pkl", "--dev", 0.2)

    def splits(name, count):
        path = tmp_path / f"{name}.csv"
        layouts.write_csv(path, images[:count], splits=False, ids=False)
        layouts.write_sizes(tmp_path / "sizes.pkl", images[:count])
        run(*words, "--captions", path, "--name", name, "--out", tmp_path / "data")
        return {
            record["file_name"]: split
            for split in ("train", "dev", "test")
            for record in records(tmp_path / "data", name, split)
        }

    whole, part = splits("whole", 60), splits("part", 40)
    assert len(whole) == 60 and len(part) == 40
    assert all(whole[name] == split for name, split in part.items())
    counts = {split: list(whole.values()).count(split) for split in ("train", "dev", "test")}
    # 12 and 6 are expected; of a hash, three standard deviations more or less.
    assert 3 <= counts["dev"] <= 21 and 1 <= counts["test"] <= 13


@pytest.mark.parametrize("shuffled", [False, True])
def test_scene_graphs_by_id(tmp_path, images, shuffled):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    layouts.write_graphs(tmp_path / "graphs.jsonl", images, shuffled=shuffled)
    words = ("--captions", tmp_path / "dataset.json", "--scene-graphs", tmp_path / "graphs.jsonl")
    data = build_into(tmp_path, "bottom-up", tmp_path / "all.tsv", *words)
    assert_same(data, images)
    names = open_dataset(data, "tiny").info.metadata["labels"]
    by_file = {image.file_name: image for image in images}
    for record in records(data, "tiny", "train"):
        labels = [names[number] for number in record["object_labels"]]
        assert labels == by_file[record["file_name"].decode()].labels


def test_graphs_are_not_found_by_row(tmp_path, images):
    for number, image in enumerate(images):
        image.image_id = 2 * number
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    (tmp_path / "graphs.jsonl").write_text('{"id": 4, "relations": [[0, "on", 1, 0.5]]}')
    words = ("--captions", tmp_path / "dataset.json", "--scene-graphs", tmp_path / "graphs.jsonl")
    data = build_into(tmp_path, "bottom-up", tmp_path / "all.tsv", *words)
    graphed = [
        int(record["image_id"])
        for split in ("train", "dev", "test")
        for record in records(data, "tiny", split)
        if len(record["relations"])
    ]
    assert graphed == [4]


def test_graphs_of_other_images_are_refused(tmp_path, images, capsys):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    (tmp_path / "graphs.jsonl").write_text('{"id": "nobody", "relations": []}')
    words = ("--captions", tmp_path / "dataset.json", "--scene-graphs", tmp_path / "graphs.jsonl")
    run("bottom-up", tmp_path / "all.tsv", *words, "--name", "tiny", expect=2)
    assert "none of the 1 scene graphs is of an image with captions" in capsys.readouterr().err


def test_missing_files_of_features_and_graphs(tmp_path, images, capsys):
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    words = ["bottom-up", tmp_path / "all.tsv", "--captions", tmp_path / "dataset.json"]
    words += ["--name", "tiny"]
    run(*words, expect=2)
    assert f"error: {tmp_path / 'all.tsv'} does not exist; give the TSV" in capsys.readouterr().err
    layouts.write_tsv(tmp_path / "all.tsv", images)
    run(*words, "--scene-graphs", tmp_path / "g.jsonl", expect=2)
    assert f"{tmp_path / 'g.jsonl'} does not exist; give another" in capsys.readouterr().err


def test_two_images_never_read_one_file(tmp_path, images, capsys):
    layouts.write_folders(tmp_path / "f", images, name=lambda row, image: row)
    for name in ("a", "b"):
        own = [image for image in images if (image.split == "test") == (name == "b")]
        layouts.write_csv(tmp_path / f"{name}.csv", own, splits=False, ids=False)
    captions = [f"train={tmp_path / 'a.csv'}", f"test={tmp_path / 'b.csv'}"]
    words = ["folders", tmp_path / "f", "--captions", *captions, "--name", "tiny"]
    run(*words, expect=2)
    assert "would both get the features called 0; choose other --names" in capsys.readouterr().err
    layouts.write_sizes(tmp_path / "sizes.pkl", images)
    run(*words, "--sizes", tmp_path / "sizes.pkl", expect=2)
    assert "--sizes go by the rows of one caption file" in capsys.readouterr().err


def test_objects_that_are_no_regions_take_their_relations_along(tmp_path, images):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    image = images[1]
    far = [[0.0, 0.0, 1.0, 1.0], *image.boxes[1:].tolist()]
    line = {"id": image.file_name, "boxes": far, "labels": ["a"] + ["b"] * (len(far) - 1)}
    line["relations"] = [[0, "on", 1, 0.5], [1, "at", 1, 0.25]]
    (tmp_path / "graphs.jsonl").write_text(json.dumps(line))
    words = ("--captions", tmp_path / "dataset.json", "--scene-graphs", tmp_path / "graphs.jsonl")
    data = build_into(tmp_path, "bottom-up", tmp_path / "all.tsv", *words)
    names = open_dataset(data, "tiny").info.metadata
    found = {r["file_name"].decode(): r for r in records(data, "tiny", "train")}
    record = found[image.file_name]
    assert record["relations"].tolist() == [[1, names["predicates"].index("at"), 1]]
    labels = [*[-1], *[names["labels"].index("b")] * (len(far) - 1)]
    assert record["object_labels"].tolist() == labels
    assert found[images[0].file_name]["relations"].shape == (0, 3)


@pytest.mark.parametrize("layout", ["bottom-up", "folders"])
@pytest.mark.parametrize(("factor", "well"), [(1, False), (1.9, False), (3, True), (0, True)])
def test_boxes_in_0_to_1_are_not_taken_for_pixels(tmp_path, images, capsys, layout, factor, well):
    for image in images[1:2]:
        image.boxes = image.boxes / np.tile(image.size, 2).astype(np.float32)
        image.boxes *= np.float32(factor) / image.boxes.max()
    if layout == "folders":
        layouts.write_folders(tmp_path / "f", images)
    else:
        layouts.write_tsv(tmp_path / "f", images)
    layouts.write_coco(tmp_path / "a.json", images)
    words = (layout, tmp_path / "f", "--captions", f"train={tmp_path / 'a.json'}", "--name", "tiny")
    if well:  # A box of zeros says that there is none.
        return run(*words, "--check")
    run(*words, "--out", tmp_path / "data", expect=2)
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert f"boxes go up to {factor} in an image of 210 x 101: that is" in error
    assert str(images[1].image_id) in error
    remedy = "multiply them by width and height" if factor == 1 else "neither 0..1 nor pixels"
    assert remedy in error


def test_graphs_that_lose_all_relations_are_refused(tmp_path, images, capsys):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    words = ["bottom-up", tmp_path / "all.tsv", "--captions", tmp_path / "dataset.json"]
    words += ["--scene-graphs", tmp_path / "graphs.jsonl", "--name", "tiny"]
    words += ["--out", tmp_path / "data"]
    pixels = [image.boxes for image in images]
    for image in images:
        image.boxes = image.boxes / np.tile(image.size, 2).astype(np.float32)
    layouts.write_graphs(tmp_path / "graphs.jsonl", images)
    relations = sum(len(image.relations) for image in images)
    expected = f"none of the {relations} relations of {tmp_path / 'graphs.jsonl'} is between two"
    objects = sum(len(image.boxes) for image in images)
    run(*words, expect=2)
    assert expected in capsys.readouterr().err
    run(*words, "--check", expect=1)
    out = capsys.readouterr().out
    assert f"problem: {expected}" in out
    assert f"note: {objects} of {objects} objects of {tmp_path / 'graphs.jsonl'} are no" in out
    # One graph that fits is enough, and the build says how far the others don't.
    images[1].boxes = pixels[1]
    layouts.write_graphs(tmp_path / "graphs.jsonl", images)
    run(*words)
    lost = objects - len(images[1].boxes)
    assert f"note: {lost} of {objects} objects of" in capsys.readouterr().out


def test_only_the_first_images_of_a_split(tmp_path, images):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    words = ("--captions", tmp_path / "dataset.json", "--first", "train=2", "dev=1")
    data = build_into(tmp_path, "bottom-up", tmp_path / "all.tsv", *words)
    assert [len(records(data, "tiny", split)) for split in ("train", "dev", "test")] == [2, 1, 1]


def test_a_layout_that_two_names_fit_is_refused(tmp_path, images, capsys):
    """Features called 0, 1, 2 ...: rows, and here ids of other images as well."""
    for number, image in enumerate(images):
        image.image_id = len(images) - 1 - number
    layouts.write_folders(tmp_path / "f", images, name=lambda row, image: image.image_id)
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    layouts.write_sizes(tmp_path / "sizes.pkl", images)
    words = ["folders", tmp_path / "f", "--captions", tmp_path / "dataset.json"]
    words += ["--sizes", tmp_path / "sizes.pkl", "--name", "tiny", "--out", tmp_path / "data"]
    run(*words, expect=2)
    error = capsys.readouterr().err
    every = f"({len(images)} of {len(images)})"
    assert f"features are found by id {every} and by row {every}, and are not the same" in error
    assert "choose --names=id or --names=row" in error
    run(*words, "--names=id")
    assert_same(tmp_path / "data", images)


def test_a_missing_feature_file_makes_no_rows_of_ids(tmp_path, images, capsys):
    """Features 0 .. 8 and 10 .. 18 without 13, images 10 .. 18: more rows hit than ids."""
    for number, image in enumerate(images):
        image.image_id = 10 + number
    others = [dataclasses.replace(image, image_id=number) for number, image in enumerate(images)]
    layouts.write_folders(tmp_path / "f", others + [i for i in images if i.image_id != 13])
    layouts.write_csv(tmp_path / "a.csv", images)
    layouts.write_sizes(tmp_path / "sizes.pkl", images)
    words = ["folders", tmp_path / "f", "--captions", tmp_path / "a.csv", "--name", "tiny"]
    words += ["--sizes", tmp_path / "sizes.pkl"]
    run(*words, "--check", expect=1)
    report = capsys.readouterr().out
    assert "found by row (9 of 9) and by id (8 of 9), and are not the same" in report
    run(*words, "--check", "--names=id", expect=1)
    assert "has captions and no features" in capsys.readouterr().out
    # Images that were only numbered have no ids that a file could be called by.
    layouts.write_csv(tmp_path / "a.csv", images, ids=False)
    run(*words, "--check")
    assert "note: features were found by the images' rows" in capsys.readouterr().out
    run(*words, "--check", "--names=id", expect=1)
    assert "a.csv has no ids; add a column image_id" in capsys.readouterr().out


def test_graphs_called_by_stems_that_are_numbers(tmp_path, images):
    """A table without ids numbers its images from 0; graph "1" is still that of 1.jpg."""
    for number, image in enumerate(images):
        image.file_name = f"{number + 1}.jpg"
    layouts.write_folders(tmp_path / "f", images, name=lambda row, image: image.stem)
    layouts.write_csv(tmp_path / "a.csv", images, ids=False)
    layouts.write_sizes(tmp_path / "sizes.pkl", images)
    lines = [{"id": image.stem, "relations": [[0, f"of {image.stem}", 1, 1.0]]} for image in images]
    (tmp_path / "graphs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    words = ["folders", tmp_path / "f", "--captions", tmp_path / "a.csv", "--names=stem"]
    words += ["--sizes", tmp_path / "sizes.pkl", "--scene-graphs", tmp_path / "graphs.jsonl"]
    data = build_into(tmp_path, *words)
    predicates = open_dataset(data, "tiny").info.metadata["predicates"]
    for record in records(data, "tiny", "train"):
        ((_, predicate, _),) = record["relations"].tolist()
        assert f"{predicates[predicate].removeprefix('of ')}.jpg" == record["file_name"].decode()


def test_check_reports_and_writes_nothing(tmp_path, images, capsys):
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    captions = ("--captions", tmp_path / "dataset.json", "--name", "tiny", "--check")
    words = ["bottom-up", tmp_path / "all.tsv", *captions, "--out", tmp_path / "data"]
    layouts.write_tsv(tmp_path / "all.tsv", images)
    run(*words)
    out = capsys.readouterr().out
    assert out.endswith("0 problems\n")
    train = [image for image in images if image.split in ("train", layouts.RESTVAL)]
    captions = sum(len(image.captions) for image in train)
    row = next(line for line in out.splitlines() if line.startswith("train")).split()
    assert row[1:3] == [str(len(train)), str(captions)]
    # All have boxes, no scene graphs were given.
    assert row[-3:] == [str(len(train)), "0", "0"]
    farthest = max(float((i.boxes / np.tile(i.size, 2)).max()) for i in train)
    assert row[-4] == f"{farthest:.2f}"

    # One image is missing, one has a twin, one a box outside, one is in nobody's captions.
    images[0].boxes[1, 2] = 5000
    images[4].features, images[4].boxes = images[3].features, images[3].boxes / 2
    stranger = layouts.make_images(1, seed=1)[0]
    stranger.image_id = 77
    layouts.write_tsv(tmp_path / "all.tsv", [*images[:2], *images[3:], stranger])
    run(*words, expect=1)
    out = capsys.readouterr().out
    assert out.endswith("2 problems\n")
    assert f"problem: {tmp_path / 'all.tsv'} line 1 (image 1000), region 1: box" in out
    assert f"image {images[2].image_id} ({images[2].file_name}) has captions and no features" in out
    twins = f"test image {images[4].image_id} is dev image {images[3].image_id}"
    assert f"note: 1 images have the same features as another: {twins}" in out
    assert "note: 1 images have features and no captions, such as 77" in out
    assert not (tmp_path / "data").exists()


def test_check_tells_mistakes_in_whole_files_once_and_goes_on(tmp_path, capsys):
    for split in ("train", "dev", "test"):
        np.save(tmp_path / f"{split}_ims.npy", np.ones((3, 2, 4), np.float32))
        (tmp_path / f"{split}_caps.txt").write_text("A dog\n" * 3)
    (tmp_path / "train_caps.txt").write_text("A dog\n" * 4)
    np.save(tmp_path / "dev_boxes.npy", np.zeros((3, 2, 5), np.float32))
    words = ("scan", tmp_path, "--name", "tiny", "--check")
    run(*words, expect=1)
    out = capsys.readouterr().out
    assert out.count("problem: ") == 2 and out.endswith("2 problems\n")
    assert "problem: " + str(tmp_path / "train_caps.txt") + " has 4 captions" in out
    assert "problem: " + str(tmp_path / "dev_boxes.npy") + " has shape [3, 2, 5]" in out
    row = next(line for line in out.splitlines() if line.startswith("test")).split()
    assert row[1:3] == ["3", "3"]
    (tmp_path / "test_scene_graphs.jsonl").write_text("{}\n")
    run(*words, expect=1)
    assert capsys.readouterr().out.count("test_scene_graphs.jsonl line 1 is not") == 1


def test_check_reports_what_keeps_it_from_reading_anything(tmp_path, images, capsys):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,\n")
    run("bottom-up", tmp_path / "all.tsv", "--captions", tmp_path / "a.csv", *NAMED, expect=1)
    problem = f"problem: {tmp_path / 'a.csv'} line 2 (a.jpg) has no `caption`; write one a line"
    assert capsys.readouterr().out == f"{problem}\n1 problems\n"


def test_check_draws_no_pictures(tmp_path):
    sizes = ("--train", 4, "--dev", 0, "--test", 0)
    run("synthetic", *sizes, "--images", tmp_path / "images", "--check")
    assert not list(tmp_path.iterdir())


def test_mistakes_name_the_file_that_has_them(tmp_path, images, capsys):
    layouts.write_folders(tmp_path / "f", images)
    layouts.write_coco(tmp_path / "a.json", images)
    first, second = (str(image.image_id) for image in images[:2])
    np.save(tmp_path / "f" / "bu_box" / f"{first}.npy", np.array([[0, 0, 999, 9]] * 2))
    np.savez(tmp_path / "f" / "bu_att" / f"{second}.npz", feat=np.full((3, 3), np.nan))
    graph = {"id": images[2].image_id, "relations": [[0, "on", 1, 1e39]]}
    (tmp_path / "graphs.jsonl").write_text(json.dumps(graph))
    (tmp_path / "f" / "bu_att" / f"{images[3].image_id}.npz").unlink()
    words = ("--captions", f"train={tmp_path / 'a.json'}")
    words += ("--scene-graphs", tmp_path / "graphs.jsonl")
    run("folders", tmp_path / "f", *words, *NAMED, expect=1)
    problems = [x for x in capsys.readouterr().out.splitlines() if x.startswith("problem: ")]
    box, feature, graph, missing = problems
    assert f"bu_box/{first}.npy, region 0: box" in box and "correct the box or" in box
    assert f"bu_att/{second}.npz, region 0: feature value nan" in feature
    assert f"{tmp_path / 'graphs.jsonl'} line 1: relation 0 'on' 1 has confidence 1e+39" in graph
    where = f"{tmp_path / 'a.json'}, image {images[3].image_id} ({images[3].file_name})"
    assert missing.startswith(f"problem: {where} has captions and no features")


def test_scene_graphs_of_all_splits_for_scans_layout(tmp_path, images):
    for image in images:
        image.relations = [[0, "on", 1, 0.75]]
    own = {split: [i for i in images if i.split == split] for split in ("train", "dev", "test")}
    for split, some in own.items():
        features = [image.features[:2] for image in some]
        np.save(tmp_path / f"{split}_ims.npy", np.array(features))
        np.save(tmp_path / f"{split}_boxes.npy", np.array([image.boxes[:2] for image in some]))
        np.save(tmp_path / f"{split}_img_sizes.npy", np.array([image.size for image in some]))
        (tmp_path / f"{split}_caps.txt").write_text("".join("A dog\n" for _ in some))
        ids = "".join(f"{image.image_id}\n" for image in some)
        (tmp_path / f"{split}_ids.txt").write_text(ids)
    layouts.write_graphs(tmp_path / "graphs.jsonl", images, shuffled=True)
    data = build_into(tmp_path, "scan", tmp_path, "--scene-graphs", tmp_path / "graphs.jsonl")
    for split, some in own.items():
        found = records(data, "tiny", split)
        assert [record["relations"].tolist() for record in found] == [[[0, 0, 1]]] * len(some)


def test_ids_in_two_splits_are_noted(tmp_path, images, capsys):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_coco(tmp_path / "a.json", images[:4])
    layouts.write_coco(tmp_path / "b.json", images[2:])
    captions = ("--captions", f"train={tmp_path / 'a.json'}", f"dev={tmp_path / 'b.json'}")
    words = ("bottom-up", tmp_path / "all.tsv", *captions, "--name", "tiny")
    run(*words, "--check")
    assert "note: 2 ids are in both train and dev" in capsys.readouterr().out
    run(*words, "--out", tmp_path / "data")
    expected = f"note: 2 images are in both train and dev, such as {images[2].file_name}"
    assert expected in capsys.readouterr().out


def test_a_split_given_twice_is_refused(tmp_path, images, capsys):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_coco(tmp_path / "a.json", images)
    captions = ["--captions", *[f"train={tmp_path / 'a.json'}"] * 2]
    run("bottom-up", tmp_path / "all.tsv", *captions, "--name", "tiny", expect=2)
    assert "has split 'train', and so has one before it" in capsys.readouterr().err
    run("scan", tmp_path, "--name", "tiny", "--splits", "dev", "dev", expect=2)
    assert "--splits dev dev lists a split twice" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../train", "a/b", "", ".", "a b", "tr\u00e4in"])
def test_names_that_are_no_names_are_refused(tmp_path, images, capsys, name):
    layouts.write_tsv(tmp_path / "all.tsv", images)
    layouts.write_coco(tmp_path / "a.json", images)
    words = ["bottom-up", tmp_path / "all.tsv", "--out", tmp_path / "data"]
    captions = ["--captions", f"{name}={tmp_path / 'a.json'}"]
    run(*words, *captions, "--name", "tiny", expect=2)
    assert f"split {name!r} is no name" in capsys.readouterr().err
    captions = ["--captions", f"train={tmp_path / 'a.json'}"]
    run(*words, *captions, "--name", name, expect=2)
    assert f"--name {name!r} is no name" in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))


def test_bad_images_can_be_left_out(tmp_path, images, capsys):
    layouts.write_karpathy(tmp_path / "dataset.json", images)
    layouts.write_tsv(tmp_path / "all.tsv", images[1:])
    words = ["bottom-up", tmp_path / "all.tsv", "--captions", tmp_path / "dataset.json"]
    words += ["--name", "tiny", "--out", tmp_path / "data"]
    run(*words, expect=2)
    assert "no features; extract it, or leave it out" in capsys.readouterr().err
    run(*words, "--on-bad-record=skip", "--max-bad=0", expect=2)
    assert "1 images are bad, more than --max-bad=0" in capsys.readouterr().err
    run(*words, "--on-bad-record=skip")
    assert "1 bad images were left out" in capsys.readouterr().out
    found = [r["file_name"].decode() for r in records(tmp_path / "data", "tiny", "train")]
    assert images[0].file_name not in found and images[1].file_name in found
