"""Scene graphs in JSONL: mistakes by their names, and boxes that match as in a double loop."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.sources.scene_graphs import SceneGraphs, intersection_over_union
from tests.json_values import changed

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def graphs(tmp_path, *lines, of_split=False):
    path = tmp_path / "graphs.jsonl"
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return SceneGraphs(path, of_split)


GOOD = {"id": 3, "relations": [[0, "on", 1, 0.5]]}
BOX = [0, 0, 4, 4]
BOXES = [BOX, [1, 1, 3, 3]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", 'line 2 is not a JSON object with "relations"'),
        ("[" * 100_000, 'line 2 is not a JSON object with "relations"'),
        ({"id": 4}, 'line 2 is not a JSON object with "relations"'),
        ({"relations": []}, 'line 2 needs an "id"'),
        ({"id": [4], "relations": []}, 'line 2 needs an "id"'),
        ({"id": True, "relations": []}, 'line 2 needs an "id"'),
        ({"id": 4.0, "relations": []}, 'line 2 needs an "id"'),
        ({"id": "\ud800", "relations": []}, 'line 2 needs an "id"'),
        ({"id": 4, "relations": {}}, 'line 2 is not a JSON object with "relations"'),
        *(
            ({"id": 4, "relations": [[0, "on", 1], relation]}, "line 2: relation ")
            for relation in (
                *([0.7, "on", 1], ["0", "on", 1], [True, "on", 1], [0, "on", False]),
                *([0, "on"], [0, "on", 1, 0.5, 0.5], [0, "", 1], [0, " ", 1], [0, 4, 1]),
                *([0, "on", 1, "0.5"], [0, "on", 1, True], [0, "on", 1, 10**400], "abc", None),
                [0, "\ud800", 1],
            )
        ),
        ({"id": 4, "relations": [], "labels": [1]}, "line 2 needs"),
        ({"id": 4, "relations": [], "labels": ["a \udfff"]}, "line 2 needs"),
        ({"id": 4, "relations": [], "boxes": [[1, 2, 3]]}, "line 2 needs"),
        ({"id": 4, "relations": [], "boxes": [[0, 0, 1, 10**400]]}, "line 2 needs"),
        ({"id": 4, "relations": [], "boxes": [[0, 0, 1, float("nan")]]}, "line 2 needs"),
        ({"id": 4, "relations": [], "boxes": [BOX], "labels": ["a", "b"]}, "line 2 needs"),
        ({"id": 3, "relations": []}, "line 2: id 3 was on line 1 already"),
    ],
)
def test_mistakes_are_named(tmp_path, line, expected):
    with pytest.raises(DataError) as caught:
        graphs(tmp_path, GOOD, line)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_relations_of_objects_that_do_not_exist(tmp_path):
    found = graphs(tmp_path, {"id": 3, "boxes": [BOX], "relations": [[0, "on", 1]]})
    with pytest.raises(DataError, match=r"relation \[0, 'on', 1, 1.0\] names an object .* 0..0"):
        found.read("3", np.array([BOX], np.float32), 1)


def test_objects_without_boxes_must_be_the_regions(tmp_path):
    found = graphs(tmp_path, GOOD | {"labels": ["a", "b"]})
    assert found.read("3", None, 2).labels == ["a", "b"]
    with pytest.raises(DataError, match="has 2 objects and the image 5 regions"):
        found.read("3", None, 5)
    assert found.predicates == ["on"] and found.labels == ["a", "b"] and len(found) == 1


def test_objects_that_are_one_region(tmp_path):
    """Objects 0 and 2 are region 1, the second one better; 1 is region 0, and has no like."""
    regions = np.array([[50, 50, 60, 60], [0, 0, 10, 10]], np.float32)
    graph = {"id": 3, "labels": ["man", "hat", "boy"]}
    graph["boxes"] = [[0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 10]]
    graph["relations"] = [[0, "is", 2, 0.5], [0, "on", 1, 0.5], [1, "at", 2, 0.5], [1, "by", 1]]
    found = graphs(tmp_path, graph).read("3", regions, 2)
    assert found.relations == [(1, "on", 0, 0.5), (0, "at", 1, 0.5), (0, "by", 0, 1.0)]
    assert found.labels == ["hat", "boy"]
    assert found.where == f"{tmp_path / 'graphs.jsonl'} line 1"
    graph["boxes"][0], graph["boxes"][2] = graph["boxes"][2], graph["boxes"][0]
    assert graphs(tmp_path, graph).read("3", regions, 2).labels == ["hat", "man"]


def test_which_of_its_names_an_image_has(tmp_path):
    found = graphs(tmp_path, GOOD, GOOD | {"id": "a.jpg"}, GOOD | {"id": "b"})
    names = {"id": "9", "row": "3", "file": "a.jpg", "stem": "a"}
    assert not found.by_row
    assert found.find(names) == "a.jpg"
    with pytest.raises(DataError, match="'3' on line 1 and 'a.jpg' on line 2; remove one"):
        found.find(names | {"id": "3"})
    assert found.find({"file": "b.jpg", "stem": "b"}) == "b"
    assert found.find({"row": "3"}) is None  # That is the id of another image.
    with pytest.raises(DataError, match="graphs.jsonl: none of the 3 scene graphs is of an"):
        found.match([{"row": "3"}, {"id": "4"}])
    found.match([{"id": "3"}, names])
    (note,) = found.notes()
    assert f"1 of 3 graphs of {found.path} are of no image with captions, such as b" in note


NAMELESS = {"relations": [[0, "on", 1, 0.5]]}


def test_graphs_of_a_split_need_no_ids(tmp_path):
    found = graphs(tmp_path, NAMELESS, NAMELESS, of_split=True)
    assert found.by_row and len(found) == 2
    assert found.find({"id": "7", "row": "1"}) == "1"
    assert found.read("1", None, 2).where.endswith("graphs.jsonl line 2")
    with pytest.raises(DataError, match='line 1 needs an "id"'):
        graphs(tmp_path, NAMELESS)
    with pytest.raises(DataError, match="line 2 has an id, otherwise than line 1"):
        graphs(tmp_path, NAMELESS, GOOD, of_split=True)
    with pytest.raises(DataError, match="line 2 has no id, otherwise than line 1"):
        graphs(tmp_path, GOOD, NAMELESS, of_split=True)


def test_graphs_of_a_split_may_be_repeated_for_each_caption(tmp_path):
    found = graphs(tmp_path, GOOD, GOOD, GOOD | {"id": 4}, of_split=True)
    assert len(found) == 2
    with pytest.raises(DataError, match="line 3: id 3 was on line 1 already"):
        graphs(tmp_path, GOOD, GOOD | {"id": 4}, GOOD, of_split=True)


def test_a_mark_at_the_start_of_a_file_is_no_text(tmp_path):
    path = tmp_path / "graphs.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert SceneGraphs(path).read("3", None, 2).relations == [(0, "on", 1, 0.5)]


def test_overlaps_by_loops():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 5, (7, 2))
    a, b = (np.concatenate([low, low + rng.uniform(-1, 5, (7, 2))], 1) for _ in range(2))
    expected = np.zeros((7, 7))
    for i in range(7):
        for j in range(7):
            width = min(a[i, 2], b[j, 2]) - max(a[i, 0], b[j, 0])
            height = min(a[i, 3], b[j, 3]) - max(a[i, 1], b[j, 1])
            sides = [max(x[k + 2] - x[k], 0) for x in (a[i], b[j]) for k in (0, 1)]
            shared = max(width, 0) * max(height, 0)
            union = sides[0] * sides[1] + sides[2] * sides[3] - shared
            expected[i, j] = shared / union if union > 0 else 0
    np.testing.assert_allclose(intersection_over_union(a, b), expected, atol=1e-12)
    assert 0 < np.count_nonzero(expected) < 49


def check_graphs(path, names):
    """Those of these names are of two regions, and their labels are text."""
    found = SceneGraphs(path)
    for name in names:
        if found.find({"id": name}):
            graph = found.read(name, np.array(BOXES, np.float32), 2)
            assert all(s in (0, 1) and o in (0, 1) for s, _, o, _ in graph.relations)
            assert len(graph.labels) in (0, 2)
            assert all(isinstance(label, str) for label in graph.labels)


@FUZZ
@given(data=st.data())
def test_damaged_bytes_bring_a_data_error_or_graphs(tmp_path, data):
    lines = [GOOD, {"id": "a.jpg", "boxes": BOXES, "labels": ["x", "y"]}]
    lines[1] |= {"relations": [[1, "in", 0, 0.25], [0, "round", 1]]}
    whole = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 20)))
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=12)) + whole[stop:])
    try:
        check_graphs(path, ("3", "a.jpg"))
    except DataError as error:
        assert len(str(error).splitlines()) == 1


@FUZZ
@given(data=st.data())
def test_other_values_bring_a_data_error_or_relations_of_these_regions(tmp_path, data):
    relations = [[1, "in", 0, 0.25], [0, "round", 1]]
    other = {"boxes": BOXES, "labels": ["x", "y"], "relations": relations}
    lines = changed(data, [GOOD, {"id": "a.jpg", **other}])
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    try:
        check_graphs(path, ("3", "a.jpg"))
    except DataError as error:
        assert "\n" not in str(error) and str(path) in str(error)
