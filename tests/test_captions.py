"""Caption files: what each mistake is called, and that no bytes bring anything but a DataError."""

import argparse
import functools
import gzip
import json
import os
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.caption_flags import add_caption_flags, captions_of
from data_pipeline.errors import DataError
from data_pipeline.sources import captions_json
from data_pipeline.sources.captions import read_captions
from tests import layouts
from tests.json_values import changed

IMAGES = layouts.make_images()
FUZZ = settings(
    max_examples=800,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def write(path, kind):
    writers = {
        "karpathy.json": layouts.write_karpathy,
        "karpathy.json.gz": layouts.write_karpathy,
        "coco.json": layouts.write_coco,
        "table.csv": layouts.write_csv,
        "table.jsonl": layouts.write_jsonl,
    }
    writers[kind](path / kind, IMAGES)
    return path / kind


def error_of(path, **options):
    with pytest.raises(DataError) as caught:
        read_captions(path, split=None if "karpathy" in path.name else "train", **options)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "DataError" not in message
    return message


def edited_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def set_image(key, value, content):
    content["images"][2][key] = value


MISTAKES = [
    ("karpathy.json", lambda c: c["images"][1].update(cocoid=1000), "image 1000 is listed twice"),
    ("karpathy.json", lambda c: c["images"][1].update(sentences=[]), "image 1017 has no caption"),
    (
        "karpathy.json",
        lambda c: c["images"][1]["sentences"][0].update(raw=" "),
        "image 1017: caption 0 is empty",
    ),
    ("karpathy.json", lambda c: c["images"][2].pop("split"), "not laid out as expected (KeyError"),
    ("karpathy.json", lambda c: c["images"][2].update(cocoid="x"), "not laid out as expected"),
    (
        "karpathy.json",
        lambda c: c["images"][2].update(filename="../../etc/passwd"),
        "file name '../../etc/passwd' leads out of its directory",
    ),
    (
        "karpathy.json",
        lambda c: c["images"][2].update(filename="/etc/passwd"),
        "leads out of its directory",
    ),
    (
        "coco.json",
        lambda c: c["annotations"][0].update(image_id=5),
        "has captions of image 5, which is not among its images",
    ),
    (
        "coco.json",
        lambda c: c["images"].append(c["images"][0] | {"file_name": "other.jpg"}),
        "lists image 1000 twice",
    ),
    ("karpathy.json", lambda c: c["images"][2].update(cocoid=3.7), "id 3.7 is no integer"),
    (
        "coco.json",
        lambda c: c["annotations"].append(c["annotations"][3]),
        "has annotation 10510 twice; remove one of the two",
    ),
    *(
        ("karpathy.json", functools.partial(set_image, key, value), expected)
        for key, value, expected in [
            ("filename", None, "name None is no text"),
            ("filename", 12, "name 12 is no text"),
            ("filepath", None, "name None is no text"),
            ("split", None, "split None is no text"),
            ("split", 7, "split 7 is no text"),
            ("split", ["train"], "split ['train'] is no text"),
        ]
    ),
    ("coco.json", functools.partial(set_image, "file_name", None), "name None is no text"),
    ("coco.json", lambda c: c.pop("annotations"), "has neither images with sentences"),
    ("coco.json", lambda c: c["images"][0].pop("file_name"), "not laid out as expected"),
]


@pytest.mark.parametrize(("kind", "change", "expected"), MISTAKES)
def test_mistakes_in_json_are_named(tmp_path, kind, change, expected):
    assert expected in error_of(edited_json(write(tmp_path, kind), change))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "picture,caption\na.jpg,A dog\n", "columns picture, caption; its first line"),
        ("a.csv", "", "columns (none)"),
        ("a.csv", "image,caption\na.jpg,\n", "line 2 (a.jpg) has no `caption`"),
        ("a.csv", "image,caption\na.jpg\n", "line 2 (a.jpg) has no `caption`"),
        ("a.csv", "image,caption\n,A dog\n", "line 2 has no `image`"),
        ("a.csv", "image,caption\n../a.jpg,A dog\n", "leads out of its directory"),
        ("a.csv", "image,caption,image_id\na.jpg,A dog,x\n", "not laid out as expected"),
        ("a.csv", "image,caption,image_id\na.jpg,A dog,1\na.jpg,A cat,2\n", "a.jpg is image 1 and"),
        ("a.csv", "image,caption,image_id\na.jpg,A dog,1\nb.jpg,A cat,1\n", "1 is listed twice"),
        ("a.csv", "image,caption\na.jpg," + "x" * 200_000, "(131072); close the quotation marks"),
        ("a.csv", "image,caption\n", "has no image with a caption"),
        ("a.csv", "image,caption,caption\na.jpg,A dog,A cat\n", "has two columns 'caption'"),
        ("a.csv", 'image,caption\na.jpg,A\nb.jpg,"A" cat\n', "line 3: ',' expected after"),
        (
            "a.jsonl",
            '{"image": "a.jpg", "caption": "A", "captions": ["B"]}',
            "line 1 has `caption` and `captions`; keep one",
        ),
        (
            "a.jsonl",
            '{"image": "a.jpg", "caption": "A", "caption": "B"}',
            "line 1 is not JSON (key 'caption' is there twice)",
        ),
        ("a.json", '{"images": [{"id": 1, "id": 2}]}', "has 'id' twice in one object"),
        (
            "a.csv",
            "image,caption,split\na.jpg,A,train\nb.jpg,B,dev\na.jpg,C,test\n",
            "line 4: a.jpg is in test here and in train on line 2; an image has one split",
        ),
        (
            "a.jsonl",
            '{"image": "a.jpg", "caption": "A", "split": "dev"}\n'
            '{"image": "a.jpg", "caption": "B"}',
            "line 2: a.jpg is in train here and in dev on line 1",
        ),
        ("a.csv", "image,caption\na.jpg,Two dogs, one brown\n", "line 2 goes on after its last"),
        ("a.csv", 'image,caption\na.jpg,"A dog\nb.jpg,A "cat"\n', "line"),
        ("a.csv", 'image,caption\na.jpg,"A dog\nb.jpg,A cat"\n', "line 3 ends a field that began"),
        ("a.csv", "x" * 200_000, "line 1: field larger than field limit"),
        ("a.csv", "image,caption,image_id\na.jpg,A dog,4294967296\n", "ids are 0 .. 2^31 - 1"),
        ("a.json", '{"images":' + "[" * 100_000, "nested more than 50 deep"),
        ("a.jsonl", '{"image": "a.jpg"}\n', "line 1 (a.jpg) has no `caption`"),
        ("a.jsonl", '{"image": "a.jpg", "captions": [1]}\n', "line 1 (a.jpg) has no `caption`"),
        ("a.jsonl", '\n["a.jpg"]\n', "line 2 is no object"),
        *(
            ("a.jsonl", f'{{"image": "a.jpg", "caption": "A dog", {field}}}', expected)
            for field, expected in [
                ('"image_id": 5009.7', "id 5009.7 is no integer"),
                ('"image_id": true', "id True is no integer"),
                ('"split": 4', "split 4 is no text"),
                ('"split": 0', "split 0 is no text"),
                ('"split": ["train"]', "split ['train'] is no text"),
            ]
        ),
        ("a.jsonl", '{"image": "a.jpg", "caption": "A dog"}\n{"imag', "line 2 is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.json", "{", "is damaged"),
        ("a.json", "[]", "has neither images with sentences"),
    ],
)
def test_mistakes_in_text_are_named(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert expected in error_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("a.csv", "image,caption\na.jpg,A dog\n"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "A dog"}\n' * 2),
    ],
)
def test_the_line_that_is_not_utf8_is_named(tmp_path, name, before):
    (tmp_path / name).write_bytes(before.encode() + b"b.jpg,A c\xff\xfet\n")
    assert f"{tmp_path / name} line 3 is not UTF-8 (" in error_of(tmp_path / name)


def test_json_that_is_not_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"image": "\xff\xfe"}\n')
    message = error_of(tmp_path / "a.json")
    # The parser's own message comes as bytes, with a drawing below it.
    assert "a.json is damaged (" in message and "b'" not in message and "\\n" not in message


@pytest.mark.parametrize(
    ("kind", "change", "place"),
    [
        ("karpathy.json", lambda c: c["images"][3].pop("split"), "images[3]"),
        ("karpathy.json", lambda c: c["images"][3]["sentences"][0].update(raw=None), "images[3]"),
        ("karpathy.json", lambda c: c["images"][3].update(sentences=None), "images[3]"),
        ("coco.json", lambda c: c["images"][3].update(width="x"), "images[3]"),
        ("coco.json", lambda c: c["images"][3].update(width=300.5), "images[3]"),
        ("coco.json", lambda c: c["images"][3].update(height=True), "images[3]"),
        ("coco.json", lambda c: c["annotations"][5].update(caption=None), "annotations[5]"),
        ("coco.json", lambda c: c["annotations"][5].update(image_id=[1]), "annotations[5]"),
        ("coco.json", lambda c: c["annotations"].insert(5, None), "annotations[5]"),
    ],
)
def test_the_entry_that_is_not_as_expected_is_named(tmp_path, kind, change, place):
    path = edited_json(write(tmp_path, kind), change)
    assert f"{path} {place} is not laid out as expected (" in error_of(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,caption,image_id\na.jpg,A dog,1\nb.jpg,A cat,x\n"),
        ("a.jsonl", '\n\n{"image": "b.jpg", "caption": "A", "image_id": Infinity}\n'),
    ],
)
def test_the_line_with_an_odd_id_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert f"{tmp_path / name} line 3 is not laid out as expected (" in error_of(tmp_path / name)


@pytest.mark.parametrize("kind", ["karpathy.json", "karpathy.json.gz", "coco.json", "table.jsonl"])
def test_a_mark_at_the_start_of_a_file_is_no_text(tmp_path, kind):
    path = write(tmp_path, kind)
    split = None if "karpathy" in kind else "train"
    expected = read_captions(path, split=split)
    data = path.read_bytes()
    marked = b"\xef\xbb\xbf" + (gzip.decompress(data) if kind.endswith("gz") else data)
    path.write_bytes(gzip.compress(marked) if kind.endswith("gz") else marked)
    assert read_captions(path, split=split) == expected


@pytest.mark.parametrize("text", ["A dog number 0 of image 1, sitting.", "COCO_val2014_0001.jpg"])
def test_half_a_character_is_named(tmp_path, text):
    path = write(tmp_path, "table.jsonl")
    path.write_text(path.read_text().replace(text, text[:-4] + r"\ud800" + text[-4:]))
    assert r"\ud800" in error_of(path) and "image 1017" in error_of(path)


@pytest.mark.parametrize("kind", ["karpathy.json", "coco.json"])
def test_an_integer_of_thousands_of_digits(tmp_path, kind):
    path = write(tmp_path, kind)
    path.write_text(path.read_text().replace("1017", "1" * 5000, 1))
    assert "has an integer of thousands of digits" in error_of(path)


@pytest.mark.parametrize("kind", ["karpathy.json", "karpathy.json.gz", "coco.json"])
def test_half_a_character_in_json_is_no_question_mark(tmp_path, kind):
    path, text = write(tmp_path, kind), "A dog number 0 of image 1"
    pack, unpack = (gzip.compress, gzip.decompress) if kind.endswith("gz") else (bytes, bytes)
    data = unpack(path.read_bytes())
    whole = data.replace(text.encode(), rb"\ud83d\ude00 " + text.encode())
    path.write_bytes(pack(whole))
    split = None if "karpathy" in kind else "train"
    (_, item, *_) = read_captions(path, split=split)["train"]
    assert item.captions[0].startswith("\U0001f600 A dog")
    path.write_bytes(pack(whole.replace(rb"\ude00", b"")))
    assert r"has half a character (surrogate), \ud83d behind" in error_of(path)


def test_half_a_character_in_the_captions_of_vsepp(tmp_path):
    layouts.write_vsepp(tmp_path / "a", IMAGES)
    path = tmp_path / "a" / "captions_train2014.json"
    path.write_text(path.read_text().replace("A dog", r"A \udc00 dog", 1))
    with pytest.raises(DataError, match=r"captions_train2014.json has half a character"):
        read_captions(tmp_path / "a")


@pytest.mark.parametrize("name", ["captions.txt", "a.CSV", "a.Tsv", "a.JSONL", "a.JSON"])
def test_endings_are_told_apart_in_any_case(tmp_path, name):
    writers = {"jsonl": layouts.write_jsonl, "json": layouts.write_karpathy}
    ending = name.split(".")[1].lower()
    plain, path = tmp_path / f"plain.{ending.replace('txt', 'csv')}", tmp_path / name
    writers.get(ending, layouts.write_csv)(plain, IMAGES)
    plain.rename(path)
    found = {item.file_name: item for items in read_captions(path).values() for item in items}
    assert found.keys() == {image.file_name for image in IMAGES}
    assert all(list(found[i.file_name].captions) == i.captions for i in IMAGES)


def test_a_text_file_that_is_no_table(tmp_path):
    (tmp_path / "a.txt").write_text("a.jpg#0\tA dog\n")
    assert "its first line must name `image` and `caption`" in error_of(tmp_path / "a.txt")


def test_places_are_those_of_the_file(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,A dog\nb.jpg,A cat\na.jpg,A dog runs\n")
    first, second = read_captions(tmp_path / "a.csv", split="train")["train"]
    assert (first.where, second.where) == (
        *(f"{tmp_path / 'a.csv'} line 2", f"{tmp_path / 'a.csv'} line 3"),
    )
    (item, *_) = read_captions(write(tmp_path, "coco.json"), split="train")["train"]
    assert item.where == f"{tmp_path / 'coco.json'}, image 1000"


def test_karpathys_folders_are_kept_and_lead_nowhere_else(tmp_path):
    path = edited_json(
        write(tmp_path, "karpathy.json"), lambda c: c["images"][0].update(filepath="val2014")
    )
    items = read_captions(path)["train"]
    assert [item.folder for item in items[:2]] == ["val2014", ""]
    edited_json(path, lambda c: c["images"][0].update(filepath="../etc"))
    assert "file name '../etc' leads out of its directory" in error_of(path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.json.gz"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "is no regular file" in error_of(tmp_path / name)


def flags(*words):
    parser = argparse.ArgumentParser()
    add_caption_flags(parser)
    return parser.parse_args([str(word) for word in words])


def test_first_is_said_once_for_a_split(tmp_path):
    path = write(tmp_path, "karpathy.json")
    words = ("--captions", path, "--first", "train=2")
    found = captions_of(flags(*words, "--first", "dev=1", "train=2"))
    assert [len(found[split]) for split in ("train", "dev")] == [2, 1]
    with pytest.raises(DataError, match="--first has train=2 and train=3; give one of them"):
        captions_of(flags(*words, "--first", "train=3"))


def test_captions_given_twice_are_all_read(tmp_path):
    for name in ("train", "dev"):
        layouts.write_coco(tmp_path / f"{name}.json", IMAGES[:2])
    words = [f"{name}={tmp_path / name}.json" for name in ("train", "dev")]
    assert list(captions_of(flags("--captions", words[0], "--captions", words[1]))) == [
        *("train", "dev"),
    ]


def test_a_path_with_the_sign_of_a_split(tmp_path):
    (tmp_path / "lr=1").mkdir()
    path = write(tmp_path / "lr=1", "karpathy.json")
    assert captions_of(flags("--captions", path)) == read_captions(path)
    coco = write(tmp_path / "lr=1", "coco.json")
    found = captions_of(flags("--captions", f"dev={coco}"))
    assert found == read_captions(coco, split="dev")


def test_a_coco_file_needs_the_name_of_its_split(tmp_path):
    path = write(tmp_path, "coco.json")
    with pytest.raises(DataError, match="names no splits; say which one it is: train="):
        read_captions(path)


def test_quotation_marks_in_tsv_are_signs(tmp_path):
    (tmp_path / "a.tsv").write_text('image\tcaption\na.jpg\t"Stop sign\nb.jpg\tA "cat"\n')
    items = read_captions(tmp_path / "a.tsv", split="train")["train"]
    assert [item.captions for item in items] == [('"Stop sign',), ('A "cat"',)]


def test_val_of_a_table_is_dev(tmp_path):
    rows = "image,caption,split\na.jpg,A dog,val\nb.jpg,A cat,Train\nc.jpg,A cow,Val\n"
    (tmp_path / "a.csv").write_text(rows)
    found = read_captions(tmp_path / "a.csv")
    assert {split: len(items) for split, items in found.items()} == {"train": 1, "dev": 2}


def test_a_drawn_split_without_an_image_is_told(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("image,caption\na.jpg,A dog\nb.jpg,A cat\n")
    assert list(read_captions(path, held_out={"dev": 0.001, "test": 0.0})) == ["train"]
    error = capsys.readouterr().err
    assert error.count("note: ") == 1 and "no image of 2 fell to dev; give a larger --dev" in error
    read_captions(path, split="train", held_out={"dev": 0.001})
    path.write_text("image,caption,split\na.jpg,A dog,train\n")
    read_captions(path, held_out={"dev": 0.001})
    assert capsys.readouterr().err == ""


def test_a_file_that_names_its_splits_is_given_none(tmp_path):
    path = write(tmp_path, "karpathy.json")
    with pytest.raises(DataError, match="names the splits itself; leave out train="):
        read_captions(path, split="train")


def test_a_missing_file(tmp_path):
    assert "does not exist" in error_of(tmp_path / "none.json")


def test_a_bomb_ends_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(captions_json, "_MOST_BYTES", 2**20)
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'{"images": [' + b" " * 2**24 + b"]}"))
    assert "holds more than 1048576 bytes" in error_of(path)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array([1, 2]), "names caption 1, which no captions_*.json beside it has"),
        (np.array(["a"]), "it must be caption ids [N]"),
        (np.array([], int), "coco_train_ids.npy names no caption; copy it again, or remove it"),
        (np.array([10170, 10170, 10340]), "coco_train_ids.npy names caption 10170 more than once"),
        (np.array([{}], object), "not a whole .npy file of numbers"),
        # The captions of an image must lie together.
        (np.array([10170, 10340, 10171]), "image 1017 is listed twice"),
    ],
)
def test_mistakes_in_the_ids_of_vsepp(tmp_path, ids, expected):
    layouts.write_vsepp(tmp_path / "a", IMAGES)
    np.save(tmp_path / "a" / "coco_train_ids.npy", ids, allow_pickle=ids.dtype == object)
    with pytest.raises(DataError) as caught:
        read_captions(tmp_path / "a")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_captions_of_one_id_must_be_the_same(tmp_path):
    layouts.write_vsepp(tmp_path / "a", IMAGES)
    expected = read_captions(tmp_path / "a")
    path = tmp_path / "a" / "captions_val2014.json"
    layouts.write_coco(tmp_path / "a" / "captions_all.json", IMAGES)
    again = read_captions(tmp_path / "a")
    assert {k: [i.captions for i in v] for k, v in again.items()} == {
        k: [i.captions for i in v] for k, v in expected.items()
    }
    edited_json(path, lambda c: c["annotations"][0].update(caption="A horse."))
    number = 10 * IMAGES[len(IMAGES) // 2].image_id
    with pytest.raises(DataError, match=f"{path} has another caption {number}; remove one"):
        read_captions(tmp_path / "a")


def test_an_empty_directory_is_told_what_it_lacks(tmp_path):
    with pytest.raises(DataError, match=r"has no captions_\*.json"):
        read_captions(tmp_path)
    layouts.write_coco(tmp_path / "captions_val2014.json", IMAGES)
    with pytest.raises(DataError, match="has no coco_train_ids.npy or the like"):
        read_captions(tmp_path)


@functools.cache
def content(kind, directory):
    return write(directory, kind).read_bytes()


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize(
    "kind", ["karpathy.json", "karpathy.json.gz", "coco.json", "table.csv", "table.jsonl"]
)
def test_damaged_bytes_bring_a_data_error_or_nothing(tmp_path, kind, data):
    whole = content(kind, tmp_path)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 40)))
    damaged = whole[:start] + data.draw(st.binary(max_size=20)) + whole[stop:]
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    path = tmp_path / f"damaged_{kind}"
    path.write_bytes(damaged)
    try:
        found = read_captions(path, split=None if "karpathy" in kind else "train")
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert all(item.captions for items in found.values() for item in items)


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("kind", ["karpathy.json", "coco.json", "vsepp", "table.jsonl"])
def test_other_values_bring_a_data_error_or_are_read_as_they_are(tmp_path, kind, data):
    path = tmp_path / kind
    if kind == "vsepp":
        file = path / "captions_val2014.json"
        if path.exists():
            layouts.write_coco(file, IMAGES[len(IMAGES) // 2 :])
        else:
            layouts.write_vsepp(path, IMAGES)
    else:
        file = write(tmp_path, kind)
    lines = kind == "table.jsonl"
    whole = list(map(json.loads, file.read_text().splitlines() if lines else [file.read_text()]))
    edited = changed(data, whole if lines else whole[0])
    file.write_text("\n".join(map(json.dumps, edited if lines else [edited])))
    try:
        found = read_captions(path, split="train" if kind == "coco.json" or lines else None)
    except DataError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
        return
    files = path.glob("*.json") if kind == "vsepp" else [file]
    given = "".join(one.read_text() for one in files)
    for items in found.values():
        for item in items:
            assert type(item.image_id) is int and 0 <= item.image_id < 2**31
            assert all(caption.strip() for caption in item.captions)
            assert ".." not in re.split(r"[/\\]", item.file_name) and not item.file_name.startswith(
                "/"
            )
            # Nothing is rounded, and no null becomes a text.
            for side in item.size or ():
                assert str(side) in given
            assert json.dumps(item.file_name)[1:-1] in given
