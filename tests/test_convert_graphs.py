"""Published scene graphs to neutral JSON lines, and one clear line for every mistake in them."""

import collections
import copy
import gzip
import json
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.convert_graphs import main, read_graphs, read_ids, summary, write_graphs
from data_pipeline.errors import DataError
from data_pipeline.sources.scene_graphs import SceneGraphs
from tests.json_values import changed

GRAPHS = {
    "b.jpg": {
        "labels": ["man", "hat", "man"],
        "bbox": [[0, 1.5, 20, 30], [2, 2, 8, 6.25], [40, 0, 60, 35]],
        "rels": [["man:0", "wearing", "hat:1"], ["man:2", "next to", "man:0"]],
    },
    "a.jpg": {
        "labels": ["time: noon", "dog"],
        "bbox": [[0, 0, 5, 5], [1, 1, 1, 1]],
        "rels": [["dog:1", "wearing", "time: noon:0"]],
    },
    "empty.jpg": {"labels": [], "bbox": [], "rels": []},
}
# Worked out by hand.
LINES = [
    {
        "id": "b.jpg",
        "boxes": [[0, 1.5, 20, 30], [2, 2, 8, 6.25], [40, 0, 60, 35]],
        "labels": ["man", "hat", "man"],
        "relations": [[0, "wearing", 1, 1.0], [2, "next to", 0, 1.0]],
    },
    {
        "id": "a.jpg",
        "boxes": [[0, 0, 5, 5], [1, 1, 1, 1]],
        "labels": ["time: noon", "dog"],
        "relations": [[1, "wearing", 0, 1.0]],
    },
    {"id": "empty.jpg", "boxes": [], "labels": [], "relations": []},
]
KARPATHY = {
    "dataset": "mixed",
    "images": [
        {"filename": "a.jpg", "imgid": 0, "cocoid": 391895, "split": "test"},
        {"filename": "unused.jpg", "imgid": 1},
        {"filename": "b.jpg", "imgid": 2},
        {"filename": "empty.jpg", "imgid": 3, "cocoid": 9},
    ],
}


def as_numpy(graphs):
    """As programs leave them that fill the lists with what numpy gives."""
    changed = copy.deepcopy(graphs)
    for graph in changed.values():
        graph["bbox"] = [tuple(np.float64(value) for value in box) for box in graph["bbox"]]
        graph["rels"] = [tuple(relation) for relation in graph["rels"]]
    return changed


WRITERS = {
    "graphs.json": lambda graphs: json.dumps(graphs).encode(),
    "graphs.json.gz": lambda graphs: gzip.compress(json.dumps(graphs).encode()),
    "graphs.joblib": lambda graphs: pickle.dumps(graphs, protocol=3),
    "graphs.joblib.z": lambda graphs: zlib.compress(pickle.dumps(graphs, protocol=4)),
    "graphs.pkl": lambda graphs: pickle.dumps(graphs, protocol=2),
    "numpy.pkl": lambda graphs: pickle.dumps(as_numpy(graphs)),
}


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", WRITERS)
def test_a_line_an_image_in_the_order_of_the_file(tmp_path, capsys, name):
    source, out = tmp_path / name, tmp_path / "graphs.jsonl"
    source.write_bytes(WRITERS[name](GRAPHS))
    assert main([str(source), str(out)]) == 0
    assert read_lines(out) == LINES
    printed = capsys.readouterr().out
    assert "3 images, 3 relations, 2 predicates" in printed
    assert "commonest predicates: wearing 2, next to 1" in printed
    assert {path.name for path in tmp_path.iterdir()} == {name, "graphs.jsonl"}


def test_the_pipeline_reads_the_relations(tmp_path):
    out = tmp_path / "train_scene_graphs.jsonl"
    write_graphs(GRAPHS, out)
    graph = SceneGraphs(out).read(str(LINES[0]["id"]), None, len(LINES[0]["labels"]))
    assert graph.relations == [(0, "wearing", 1, 1.0), (2, "next to", 0, 1.0)]


def test_ids_of_karpathys_file(tmp_path, capsys):
    (tmp_path / "graphs.json").write_text(json.dumps(GRAPHS))
    (tmp_path / "dataset.json").write_text(json.dumps(KARPATHY))
    arguments = [str(tmp_path / name) for name in ("graphs.json", "out.jsonl")]
    assert main([*arguments, "--ids", str(tmp_path / "dataset.json")]) == 0
    expected = [{**line, "id": number} for line, number in zip(LINES, (2, 391895, 9), strict=True)]
    assert read_lines(tmp_path / "out.jsonl") == expected
    (tmp_path / "dataset.json.gz").write_bytes(gzip.compress(json.dumps(KARPATHY).encode()))
    packed = ["--ids", str(tmp_path / "dataset.json.gz"), "--overwrite"]
    assert main([*arguments, *packed]) == 0
    assert read_lines(tmp_path / "out.jsonl") == expected
    (tmp_path / "dataset.json.gz").write_bytes(gzip.compress(b"{}" * 999)[:-9])
    assert main([*arguments, *packed]) == 2
    assert "dataset.json.gz can't be decompressed" in capsys.readouterr().err
    assert main([*arguments, "--ids", str(tmp_path / "nope.json"), "--overwrite"]) == 2
    assert "nope.json does not exist; give another --ids" in capsys.readouterr().err
    assert main([str(tmp_path / "nope.json"), arguments[1], "--overwrite"]) == 2
    assert "nope.json does not exist; give the file of" in capsys.readouterr().err
    one_id = {"images": [{**image, "cocoid": 5} for image in KARPATHY["images"]]}
    (tmp_path / "dataset.json").write_text(json.dumps(one_id))
    assert main([*arguments, "--ids", str(tmp_path / "dataset.json"), "--overwrite"]) == 2
    assert "image 'a.jpg' has the id 5 of image 'b.jpg' in the file of" in capsys.readouterr().err
    without_b = {"images": KARPATHY["images"][:2]}
    (tmp_path / "dataset.json").write_text(json.dumps(without_b))
    assert main([*arguments, "--ids", str(tmp_path / "dataset.json"), "--overwrite"]) == 2
    assert "image 'b.jpg' is not in the file of --ids" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", 'no list "images"'),
        ('{"images": 3}', 'no list "images"'),
        ('{"images": [3]}', "image 0: needs"),
        ('{"images": [{"filename": "a.jpg"}]}', "image 0: needs"),
        ('{"images": [{"filename": "a.jpg", "imgid": "7"}]}', "image 0: needs"),
        ('{"images": [{"filename": "a.jpg", "imgid": true}]}', "image 0: needs"),
        ('{"images": [{"imgid": 7}]}', "image 0: needs"),
        (
            '{"images": [{"filename": "a", "imgid": 7}, {"filename": "a", "imgid": 8}]}',
            "image 1: 'a' has id 8 here and 7 before",
        ),
    ],
)
def test_mistakes_in_ids(tmp_path, content, expected):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_ids(path)
    message = str(caught.value)
    assert expected in message and str(path) in message and "\n" not in message


def put(key, value):
    def change(graph):
        graph[key] = value

    return change


def put_box(value):
    def change(graph):
        graph["bbox"][1] = value

    return change


def put_relation(value):
    def change(graph):
        graph["rels"][1] = value

    return change


BOX = "image 'b.jpg', region 1: box"
RELATION = "image 'b.jpg', relation 1: "
MISTAKES = {
    "no labels": (lambda graph: graph.pop("labels"), 'not a dict of "labels"'),
    "labels": (put("labels", "man"), "'labels' is a str"),
    "label": (put("labels", ["man", 1, "man"]), "region 1: its label 1 is no text"),
    "relations": (put("rels", {}), "'rels' is a dict"),
    "too few boxes": (lambda graph: graph["bbox"].pop(), "3 labels and 2 boxes"),
    "box of three": (put_box([1, 2, 3]), BOX),
    "box of words": (put_box([1, 2, 3, "4"]), BOX),
    "box of truths": (put_box([0, 0, True, True]), BOX),
    "box with nan": (put_box([0, 0, float("nan"), 5]), BOX),
    "box without end": (put_box([0, 0, float("inf"), 5]), BOX),
    "box far away": (put_box([0, 0, 10**400, 5]), BOX),
    "box turned": (put_box([5, 0, 4, 5]), BOX),
    "box upside down": (put_box([0, 5, 4, 4]), BOX),
    "box missing": (put_box(None), BOX),
    "pair": (put_relation(["man:0", "hat:1"]), RELATION + "['man:0', 'hat:1'] is not three"),
    "half a character": (put_relation(["man:0", "\ud800", "hat:1"]), "is not three texts"),
    "no predicate": (put_relation(["man:0", " ", "hat:1"]), "is not three texts"),
    "numbers": (put_relation([0, "on", 1]), RELATION + "[0, 'on', 1] is not three texts"),
    "text": (put_relation("abc"), RELATION + "'abc' is not"),
    "no region": (put_relation(["man", "on", "hat:1"]), RELATION + "'man' is not label:region"),
    "region too far": (put_relation(["man:0", "on", "hat:3"]), "'hat:3' is not label:region"),
    "region below": (put_relation(["man:-1", "on", "hat:1"]), "'man:-1' is not label:region"),
    "huge": (put_relation(["man:" + "9" * 5000, "on", "hat:1"]), "is not label:region"),
    "other digits": (put_relation(["man:0", "on", "hat:\u0661"]), "is not label:region"),
    "wrong label": (
        put_relation(["man:0", "on", "hat:2"]),
        RELATION + "'hat:2' names region 2, whose label is 'man'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path, capsys, mistake):
    change, expected = MISTAKES[mistake]
    graphs = copy.deepcopy({name: GRAPHS[name] for name in ("a.jpg", "b.jpg")})
    change(graphs["b.jpg"])
    source, out = tmp_path / "graphs.pkl", tmp_path / "graphs.jsonl"
    source.write_bytes(pickle.dumps(graphs))
    assert main([str(source), str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {source}, image 'b.jpg'") and expected in error
    assert list(tmp_path.iterdir()) == [source]  # Nothing half written.


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("graphs.json", b"{", "is not JSON"),
        ("graphs.json", b"[" * 100_000, "is not JSON"),
        ("graphs.json", b"\xff\xfe\x00", "is not JSON"),
        ("graphs.json", b"[]", "not a dict of file name"),
        ("graphs.json", b"{}", "graphs.json has no scene graphs; give the file"),
        ("graphs.pkl", pickle.dumps({}), "graphs.pkl has no scene graphs"),
        ("graphs.pkl", pickle.dumps({1: {}}), "not a dict of file name"),
        ("graphs.pkl", pickle.dumps({"a": collections.OrderedDict()}), "collections.OrderedDict"),
        ("graphs.pkl", b"", "not a whole pickle"),
        ("graphs.json", b'{"a.jpg": 3}', "image 'a.jpg' is not a dict of"),
    ],
)
def test_files_that_are_something_else(tmp_path, capsys, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name), str(tmp_path / "out.jsonl")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and expected in error and name in error


def test_an_older_file_is_replaced_only_when_asked_and_by_a_whole_one(tmp_path, capsys):
    source, out = tmp_path / "graphs.json", tmp_path / "out.jsonl"
    source.write_text(json.dumps(GRAPHS))
    out.write_text("older")
    assert main([str(source), str(out)]) == 2
    assert f"error: {out} exists; add --overwrite" in capsys.readouterr().err
    source.write_text(json.dumps({**GRAPHS, "z.jpg": {}}))
    assert main([str(source), str(out), "--overwrite"]) == 2
    assert out.read_text() == "older" and not (tmp_path / "out.jsonl.tmp").exists()
    source.write_text(json.dumps(GRAPHS))
    assert main([str(source), str(out), "--overwrite"]) == 0
    assert read_lines(out) == LINES


def test_a_graph_that_is_there_twice(tmp_path, capsys):
    text = json.dumps(GRAPHS)
    (tmp_path / "graphs.json").write_text(text[:-1] + ", " + text[1:])
    assert main([str(tmp_path / "graphs.json"), str(tmp_path / "out.jsonl")]) == 2
    assert "is not JSON (key 'b.jpg' is there twice)" in capsys.readouterr().err


def test_missing_files(tmp_path, capsys):
    assert main([str(tmp_path / "none.json"), str(tmp_path / "out.jsonl")]) == 2
    assert "none.json" in capsys.readouterr().err
    (tmp_path / "graphs.json").write_text(json.dumps(GRAPHS))
    assert main([str(tmp_path / "graphs.json"), str(tmp_path / "none" / "out.jsonl")]) == 2
    assert "out.jsonl.tmp" in capsys.readouterr().err


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "python -m data_pipeline.convert_graphs flickr30k" in text
    assert "--ids" in text and "--overwrite" in text


def test_summary_without_relations():
    expected = "1 images, 0 relations, 0 predicates\ncommonest predicates: none"
    assert summary(1, collections.Counter()) == expected


def test_graphs_are_read_as_they_are(tmp_path):
    (tmp_path / "graphs.pkl").write_bytes(pickle.dumps(GRAPHS))
    graphs = read_graphs(tmp_path / "graphs.pkl")
    assert graphs == GRAPHS and list(graphs) == list(GRAPHS)


@settings(
    max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_other_values_bring_one_line_or_whole_graphs(tmp_path, capsys, data):
    source, out = tmp_path / "graphs.json", tmp_path / "graphs.jsonl"
    source.write_text(json.dumps(changed(data, GRAPHS)))
    out.unlink(missing_ok=True)
    status = main([str(source), str(out)])
    error = capsys.readouterr().err.split("\nerror: ")[-1]  # Behind the progress bar.
    if status:
        assert status == 2 and len(error.splitlines()) == 1
        assert str(source) in error and not out.exists()
        return
    for line in read_lines(out):
        count = len(line["labels"])
        assert len(line["boxes"]) == count and np.isfinite(line["boxes"]).all()
        assert all(0 <= s < count and 0 <= o < count for s, _, o, _ in line["relations"])
