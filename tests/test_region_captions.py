"""Datasets on disk: what is written comes back, and a part is never taken for the whole."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from data_pipeline import build as build_program
from data_pipeline.errors import DataError
from data_pipeline.region_captions import build_dataset, dataset_path, open_dataset
from data_pipeline.shards import BadRecords
from data_pipeline.sources import Contents
from data_pipeline.synthetic import SyntheticScenes


class Handmade:
    """A source of given records, whose `contents` are theirs."""

    labels, predicates, feature_width = ["thing"], ["on"], 2

    def __init__(self, records, name="handmade"):
        self.name, self._records = name, records

    def splits(self):
        return ["train", "empty"]

    def contents(self, split):
        records = self._records if split == "train" else []
        counts = [len(record["captions"]) for record in records]
        ids = [record["image_id"] for record in records]
        return Contents(np.array(ids, np.int64), np.array(counts, np.int64))

    def read(self, split, index):
        return {k: v for k, v in self._records[index].items() if k not in ("image_id", "index")}


def record(index, regions=2, captions=("A dog .", "Dog's dog"), **changes):
    """A record whose arrays all have different lengths; `changes` replaces keys."""
    return {
        "image_id": np.int64(100 + index),
        "index": np.int64(index),
        "file_name": f"{index}.jpg",
        "size": np.array([30, 20], np.int32),
        "regions": np.full((regions, 2), index, np.float16),
        "boxes": np.linspace(0, 1, regions * 4, dtype=np.float32).reshape(regions, 4),
        "object_labels": np.arange(regions, dtype=np.int32),
        "relations": np.array([[0, 0, regions - 1]] * (index % 3), np.int32).reshape(-1, 3),
        "relation_scores": np.full(index % 3, 0.5, np.float32),
        "captions": list(captions),
        "links": np.array([[1, 0, 3, 0]] * (index % 2), np.int32).reshape(-1, 4),
    } | changes


def test_records_come_back_as_they_went_in(tmp_path):
    records = [
        record(i, regions=1 + i % 4, captions=["Ein Hündchen"] * (1 + i % 3)) for i in range(20)
    ]
    assert build_dataset(Handmade(records), tmp_path)
    stored = list(open_dataset(tmp_path, "handmade").as_dataset(split="train").as_numpy_iterator())
    assert len(stored) == len(records)
    captions = 0
    for expected, found in zip(records, stored, strict=True):
        assert found.pop("first_caption") == captions
        captions += len(expected["captions"])
        assert [text.decode() for text in found.pop("captions")] == expected["captions"]
        assert found.pop("file_name").decode() == expected["file_name"]
        assert set(found) == set(expected) - {"captions", "file_name"}
        for key, value in found.items():
            assert value.dtype == expected[key].dtype
            np.testing.assert_array_equal(value, expected[key])


def test_metadata_and_shards(tmp_path):
    source = Handmade([record(i) for i in range(11)])
    build_dataset(source, tmp_path)
    builder = open_dataset(tmp_path, "handmade")
    metadata = builder.info.metadata
    assert (metadata["labels"], metadata["predicates"]) == (["thing"], ["on"])
    assert (metadata["source"], metadata["feature_width"]) == ("Handmade", 2)
    assert metadata["word_counts"] == {"dog": 22, "a": 11, "dog's": 11}
    assert metadata["splits"] == {
        "train": {
            **{"images": 11, "captions": 22, "min_regions": 2, "max_regions": 2},
            **{"mean_words": 2.0, "max_words": 2, "vocabulary": 3},
            # Of the numbers 0 to 10, seven are no multiples of 3.
            **{"with_boxes": 11, "with_relations": 7},
        }
    }
    assert list(builder.info.splits) == ["train"]  # A split without records is left out.
    assert sum(builder.info.splits["train"].shard_lengths) == 11
    assert builder.info.splits["train"].num_shards == 8
    build_dataset(Handmade([record(i) for i in range(3)], name="three"), tmp_path)
    assert open_dataset(tmp_path, "three").info.splits["train"].num_shards == 3


def graph(*relations):
    """The keys of a scene graph given as (subject, predicate, object, confidence)."""
    return {
        "relations": np.array([row[:3] for row in relations], np.int32).reshape(-1, 3),
        "relation_scores": np.array([row[3] for row in relations], np.float32),
    }


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record(0), record(1, image_id=np.int64(100))], "record 1: image_id 100 repeats"),
        ([record(0, image_id=np.int64(2**31))], "image_id 2147483648"),
        ([record(0, regions=0)], "0 regions and 2 captions"),
        ([record(0, captions=())], "record 0 (image_id 100) has no captions"),
        (
            [record(0), record(1, **graph((0, 0, 1, 1), (1, 0, 0, 0.25), (0, 0, 0, 0.5)))],
            "handmade/train record 1 (image_id 101): relation 2 has confidence 0.5 and the one "
            "before it 0.25; sort relations and relation_scores by descending confidence",
        ),
        (
            [record(0, **graph((0, 0, 1, 1), (0, 0, 1, np.nan)))],
            "record 0 (image_id 100): relation 1 has confidence nan; give a finite number",
        ),
        ([record(0, **graph((0, 0, 1, np.inf)))], "relation 0 has confidence inf"),
        ([record(0, relation_scores=np.ones(1, np.float32))], "0 relations and 1 relation_scores"),
        ([record(0, **graph((0, 0, 1, 1), (0, 0, 2, 1)))], "relation 1 is [0, 0, 2]; its region,"),
        ([record(0, **graph((-1, 0, 1, 1)))], "relation 0 is [-1, 0, 1]"),
        ([record(0, **graph((0, 1, 1, 1)))], "must be below [2, 1, 2] and not negative"),
    ],
)
def test_broken_promises_of_a_source(tmp_path, records, expected):
    with pytest.raises(DataError) as caught:
        build_dataset(Handmade(records), tmp_path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not dataset_path(tmp_path, "handmade").exists()


class Faulty(Handmade):
    """A source which cannot read some of its images."""

    def __init__(self, records, bad):
        super().__init__(records)
        self._bad = bad

    def read(self, split, index):
        if index in self._bad:
            raise DataError(f"file.npy row {index} is damaged")
        return super().read(split, index)


def test_bad_images_are_left_out_and_counted(tmp_path, capsys):
    source = Faulty([record(i, captions=["A dog"] * (1 + i % 3)) for i in range(20)], bad={3, 11})
    with pytest.raises(DataError, match=r"file.npy row 3 is damaged"):
        build_dataset(source, tmp_path)
    with pytest.raises(DataError, match=r"2 images are bad, more than --max-bad=1; the last: .*11"):
        build_dataset(source, tmp_path, on_bad=BadRecords(skip=True, limit=1))
    assert not dataset_path(tmp_path, "handmade").exists()
    builder = build_program.build(source, tmp_path, on_bad=BadRecords(skip=True, limit=2))
    path = dataset_path(tmp_path, "handmade") / "left_out.txt"
    assert path.read_text() == "file.npy row 3 is damaged\nfile.npy row 11 is damaged\n"
    assert f"2 bad images were left out; {path} says why" in capsys.readouterr().out
    kept = [i for i in range(20) if i not in (3, 11)]
    stored = list(builder.as_dataset(split="train").as_numpy_iterator())
    assert [int(one["index"]) for one in stored] == kept
    # Captions keep the numbers that they have in the source.
    firsts = [sum(1 + j % 3 for j in range(i)) for i in kept]
    assert [int(one["first_caption"]) for one in stored] == firsts
    assert builder.info.metadata["left_out"] == {"train": 2}
    assert builder.info.metadata["splits"]["train"]["images"] == 18
    assert builder.info.splits["train"].num_examples == 18


def test_a_split_without_any_good_image_is_no_dataset(tmp_path):
    source = Faulty([record(0), record(1)], bad={0, 1})
    with pytest.raises(DataError, match="handmade/train has no image that can be read"):
        build_dataset(source, tmp_path, on_bad=BadRecords(skip=True))


def test_existing_dataset_is_kept_unless_told_otherwise(tmp_path):
    old, new = Handmade([record(0)]), Handmade([record(0), record(1)])
    assert build_dataset(old, tmp_path)
    assert not build_dataset(new, tmp_path)
    assert open_dataset(tmp_path, "handmade").info.splits["train"].num_examples == 1
    broken = Handmade([record(0), record(5, regions=0)])
    with pytest.raises(DataError):
        build_dataset(broken, tmp_path, overwrite=True)  # The old one must outlive it.
    assert open_dataset(tmp_path, "handmade").info.splits["train"].num_examples == 1
    assert build_dataset(new, tmp_path, overwrite=True)
    assert open_dataset(tmp_path, "handmade").info.splits["train"].num_examples == 2


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ([record(0), record(1)], "1 images with 2 captions in train, and now there are 2 with 4"),
        ([record(0, captions=["A dog"])], "with 2 captions in train, and now there are 1 with 1"),
    ],
)
def test_a_dataset_of_other_images_is_not_taken_for_this_one(tmp_path, later, expected):
    build_dataset(Handmade([record(0)]), tmp_path)
    with pytest.raises(DataError) as caught:
        build_program.check_counts(Handmade(later), open_dataset(tmp_path, "handmade"))
    message = str(caught.value)
    assert expected in message and "--overwrite" in message and "\n" not in message
    build_dataset(Handmade(later), tmp_path, overwrite=True)
    build_program.check_counts(Handmade(later), open_dataset(tmp_path, "handmade"))


def test_images_that_were_left_out_still_count_as_the_same_ones(tmp_path):
    source = Faulty([record(i) for i in range(4)], bad={1})
    build_dataset(source, tmp_path, on_bad=BadRecords(skip=True))
    builder = open_dataset(tmp_path, "handmade")
    build_program.check_counts(source, builder)
    with pytest.raises(DataError, match="built of 4 images with 6 captions in train, and now .* 5"):
        build_program.check_counts(Handmade([record(i) for i in range(5)]), builder)


def test_a_directory_whose_name_has_signs_of_a_pattern(tmp_path):
    data_dir = tmp_path / "[a]*"
    left = dataset_path(data_dir, "handmade").parent / ".staging-of-a-killed-build"
    os.makedirs(left)
    assert build_dataset(Handmade([record(0)]), data_dir)
    assert not left.exists()


def test_the_summary_counts_images_with_boxes_and_relations(tmp_path, capsys):
    plain = record(1, boxes=np.zeros((2, 4), np.float32))
    build_program.build(Handmade([record(0), plain, record(2)]), tmp_path)
    header, row = capsys.readouterr().out.splitlines()[:2]
    assert header.endswith("with boxes  with relations") and row.split()[-2:] == ["2", "2"]


def test_absent_dataset_names_the_command(tmp_path):
    build_dataset(Handmade([record(0)], name="other"), tmp_path)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, "scenes")
    message = str(caught.value)
    assert "which has other" in message and "\n" not in message
    assert f"python -m data_pipeline.build synthetic --name scenes --out {tmp_path}" in message


def test_killed_build_leaves_nothing_that_counts(tmp_path):
    """A build killed by SIGKILL in its second split, when the first is already on disk."""
    program = """
        import os, signal, sys
        from data_pipeline.region_captions import build_dataset
        from data_pipeline.synthetic import SyntheticScenes

        class Killed(SyntheticScenes):
            def read(self, split, index):
                if split == "dev" and index == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().read(split, index)

        build_dataset(Killed({"train": 40, "dev": 8}), sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    parent = dataset_path(tmp_path, "scenes").parent
    assert any(".tfrecord" in name for _, _, names in os.walk(parent) for name in names)
    with pytest.raises(DataError, match="no dataset 'scenes'"):
        open_dataset(tmp_path, "scenes")
    assert build_dataset(SyntheticScenes({"train": 40, "dev": 8}), tmp_path)
    assert open_dataset(tmp_path, "scenes").info.splits["dev"].num_examples == 8
    assert sorted(path.name for path in parent.iterdir()) == [".lock", "1.0.0"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_build_says_so_and_leaves_nothing(tmp_path, capsys, monkeypatch, sent):
    def read(self, split, index):
        if split == "dev":
            os.kill(os.getpid(), sent)
        return whole(self, split, index)

    whole = SyntheticScenes.read
    monkeypatch.setattr(SyntheticScenes, "read", read)
    before = signal.getsignal(sent)
    words = ["synthetic", "--train=40", "--dev=8", "--test=8", f"--out={tmp_path}"]
    assert build_program.main(words) == 128 + sent
    assert signal.getsignal(sent) is before
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; the same command builds it"
    parent = dataset_path(tmp_path, "scenes").parent
    assert [path.name for path in parent.iterdir()] == [".lock"]


def test_files_are_read_by_tfds_in_order_whatever_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.shards._MIN_SHARDS", 13)
    build_dataset(Handmade([record(i) for i in range(50)]), tmp_path)
    builder = open_dataset(tmp_path, "handmade")
    stored = builder.as_dataset(split="train").as_numpy_iterator()
    assert [int(one["index"]) for one in stored] == list(range(50))
    lengths = builder.info.splits["train"].shard_lengths
    assert len(lengths) == 13 and set(lengths) == {3, 4}


def test_two_builds_of_one_dataset_do_not_mix(tmp_path):
    class Nested(Handmade):
        def read(self, split, index):
            with pytest.raises(DataError, match="another process is building"):
                build_dataset(Handmade([record(0)]), tmp_path)
            return super().read(split, index)

    assert build_dataset(Nested([record(0), record(1)]), tmp_path)
    assert open_dataset(tmp_path, "handmade").info.splits["train"].num_examples == 2


def test_command_line_builds_and_reports(tmp_path, capsys):
    sizes = ["--train", "12", "--dev", "4", "--test", "0"]
    arguments = ["synthetic", *sizes, "--out", str(tmp_path)]
    assert build_program.main(arguments) == 0
    out = capsys.readouterr().out
    assert str(dataset_path(tmp_path, "scenes")) in out
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        *(["train", "12", "60"], ["dev", "4", "20"]),
    ]
    assert build_program.main(arguments) == 0
    assert "already built" in capsys.readouterr().out
    sizes[-1] = "8"
    assert build_program.main(["synthetic", *sizes, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "0 images with 0 captions in test, and now there are 8 with 40; build it again" in error


def test_command_line_tells_mistakes_in_one_line(tmp_path, capsys):
    assert build_program.main(["scan", str(tmp_path), "--name", "x", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no SPLIT_ims.npy in ") and captured.err.count("\n") == 1


def test_pictures_of_a_split_are_drawn_without_a_dataset(tmp_path, capsys):
    words = ["synthetic", "--train=8", "--dev=4", f"--out={tmp_path}/data"]
    both = [f"--images={tmp_path}/both", "--test=0", "--name=tiny"]
    assert build_program.main([*words, *both]) == 0
    some = [f"--images={tmp_path}/some", "--name=tiny", "--draw", "dev"]
    assert build_program.main([*words[:3], f"--out={tmp_path}/none", *some]) == 0
    assert "4 pictures of dev" in capsys.readouterr().out
    drawn = sorted(path.name for path in (tmp_path / "some").iterdir())
    assert drawn == [f"tiny_dev_{n:06d}.png" for n in range(4)]
    for name in drawn:
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
    assert not (tmp_path / "none").exists()
    for wrong, said in ((["--draw", "dev"], "--images"), ([*some, "val"], "no split 'val'")):
        assert build_program.main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err
