"""Stores of features: each mistake by its name, and no harm from files made to do some."""

import base64
import io
import os
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.sources import features
from data_pipeline.sources.features import BottomUpTsv, FeatureFolders, read_small_array
from tests import layouts

IMAGES = layouts.make_images()
FUZZ = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def tsv(directory, *lines):
    path = directory / "all.tsv"
    path.write_text("".join(lines))
    return path


def columns(**changes):
    """The first image's line with some columns replaced."""
    names = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
    found = dict(zip(names, layouts.tsv_line(IMAGES[0]).rstrip("\n").split("\t"), strict=True))
    return "\t".join((found | changes).values()) + "\n"


def packed(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


BAD_LINES = {
    "truncated base64": (columns(features=columns().split("\t")[5][:-3]), "is damaged"),
    "no base64": (columns(boxes="%%%%"), "is damaged"),
    "half a float": (columns(boxes=base64.b64encode(b"123").decode()), "is damaged"),
    "too many boxes": (columns(num_boxes="3"), "announces 3 boxes and has 8 coordinates"),
    "no boxes": (columns(num_boxes="0", boxes="", features=""), "announces 0 boxes"),
    "negative count": (columns(num_boxes="-2"), "announces -2 boxes"),
    "count in letters": (columns(num_boxes="two"), "is damaged"),
    "huge count": (columns(num_boxes="9" * 5000), "is damaged"),
    "features do not divide": (columns(features=packed(np.ones(5))), "5 feature values"),
    "a column less": ("1000\t2\t3\t4\n", "has 4 columns, not image_id, image_w"),
}


@pytest.mark.parametrize("mistake", BAD_LINES)
def test_bad_lines_are_named_and_spare_the_others(tmp_path, mistake):
    line, expected = BAD_LINES[mistake]
    path = tsv(tmp_path, layouts.tsv_line(IMAGES[1]), line, layouts.tsv_line(IMAGES[2]))
    store = BottomUpTsv([path])
    with pytest.raises(DataError) as caught:
        store.read("1000")
    message = str(caught.value)
    assert expected in message and f"{path} line 2 (image 1000)" in message
    assert "\n" not in message and len(message) < 400
    for image in IMAGES[1:3]:
        np.testing.assert_array_equal(store.read(str(image.image_id)).features, image.features)


def test_one_image_on_two_lines(tmp_path):
    path = tsv(tmp_path, *(layouts.tsv_line(IMAGES[i]) for i in (0, 1, 0)))
    with pytest.raises(DataError, match=f"line 3: image 1000 was at line 1 of {path} already"):
        BottomUpTsv([path])


@pytest.mark.parametrize("name", ["x" * 200 + ".jpg", "stra\u00dfe/\u72ac.jpg"])
def test_images_may_be_called_by_long_and_foreign_names(tmp_path, name):
    path = tmp_path / "all.tsv"
    path.write_text(layouts.tsv_line(IMAGES[0], name), encoding="utf-8-sig")
    store = BottomUpTsv([path])
    assert list(store.names()) == [name]
    np.testing.assert_array_equal(store.read(name).features, IMAGES[0].features)
    assert store.read(name).where == f"{path} line 1 (image {name})"


@pytest.mark.parametrize("data", [b"\xff\xfe\tx\n", b"x" * 5000 + b"\n"])
def test_what_is_no_name_is_told(tmp_path, data):
    (tmp_path / "all.tsv").write_bytes(data)
    with pytest.raises(DataError, match="line 1 does not begin with an image id") as caught:
        BottomUpTsv([tmp_path / "all.tsv"])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("line", ["\n", "\tx\n", "\x01\x02\tx\n"])
def test_a_line_without_an_id(tmp_path, line):
    with pytest.raises(DataError, match="line 2 does not begin with an image id"):
        BottomUpTsv([tsv(tmp_path, layouts.tsv_line(IMAGES[0]), line)])


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_MOST_BYTES", 1000)
    with pytest.raises(DataError, match="line 1 does not end; this is no features TSV"):
        BottomUpTsv([tsv(tmp_path, "1\t" * 2000)])


def test_an_empty_file(tmp_path):
    with pytest.raises(DataError, match="has no lines"):
        BottomUpTsv([tsv(tmp_path)])


@FUZZ
@given(data=st.data())
def test_damaged_lines_bring_a_data_error_or_numbers(tmp_path, data):
    whole = "".join(layouts.tsv_line(image) for image in IMAGES[:3]).encode()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 30)))
    path = tmp_path / "damaged.tsv"
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=20)) + whole[stop:])
    try:
        store = BottomUpTsv([path])
    except DataError as error:
        assert "\n" not in str(error)
        return
    for name in store.names():
        try:
            found = store.read(name)
        except DataError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert len(found.features) == len(found.boxes)


@pytest.fixture
def folders(tmp_path):
    layouts.write_folders(tmp_path / "f", IMAGES[:3])
    return tmp_path / "f"


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(shape, dtype="<f4", data=b""):
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + data


def objects():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], object), allow_pickle=True)
    return buffer.getvalue()


BAD_FILES = {
    "not a zip": (b"feat", "is damaged"),
    "no feat": (archive(x=npy((1, 1), data=b"1234")), "and no array 'feat'"),
    "objects": (archive(feat=objects()), "is an array of object"),
    "text": (archive(feat=npy((1, 1), "<U1", b"1234")), "it must be one of numbers"),
    "huge shape": (archive(feat=npy((2**40, 2**40))), "does not fit into"),
    "negative shape": (archive(feat=npy((-1, 4), data=b"1234")), "is damaged"),
    "data missing": (archive(feat=npy((2, 2), data=b"1234")), "it ends early"),
    "rank": (archive(feat=npy((1,), data=b"1234")), "it must be [regions, feature width]"),
    "no regions": (archive(feat=npy((0, 4))), "it must be [regions, feature width]"),
    "bomb": (archive(feat=npy((2**26 + 1,), data=bytes(2**28 + 4))), "unpacks to 2684"),
}


def test_whatever_compression_is_damaged(folders):
    """Of each byte behind the first local header, one bit is turned round."""
    path = folders / "bu_att" / "1000.npz"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as file:
            file.writestr("feat.npy", npy((64, 3), data=bytes(range(256)) * 3))
        whole = buffer.getvalue()
        path.write_bytes(whole)
        assert FeatureFolders(folders).read("1000").features.shape == (64, 3)
        refused = 0
        for place in range(30, len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            try:
                FeatureFolders(folders).read("1000")
            except DataError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                refused += 1
        assert refused > 100


def test_a_pipe_is_not_waited_for(folders):
    for place in ("bu_att/1000.npz", "bu_box/1017.npy"):
        (folders / place).unlink()
        os.mkfifo(folders / place)
        with pytest.raises(DataError, match=f"{place} is no regular file"):
            FeatureFolders(folders).read(place[7:11])


def test_an_image_in_two_files(folders):
    np.save(folders / "bu_att" / "1017.npy", IMAGES[1].features)
    with pytest.raises(DataError, match="bu_att has 1017.npz and 1017.npy; remove one of them"):
        FeatureFolders(folders).names()


@pytest.mark.parametrize("mistake", BAD_FILES)
def test_bad_archives_are_named(folders, mistake):
    data, expected = BAD_FILES[mistake]
    path = folders / "bu_att" / "1000.npz"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        FeatureFolders(folders).read("1000")
    assert expected in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_boxes_that_are_missing(folders):
    (folders / "bu_box" / "1000.npy").unlink()
    with pytest.raises(DataError, match="1000.npy is missing; extract the image again"):
        FeatureFolders(folders).read("1000")
    for path in (folders / "bu_box").iterdir():
        path.unlink()
    (folders / "bu_box").rmdir()
    assert FeatureFolders(folders).read("1000").boxes is None


def test_directories_that_do_not_fit(folders, tmp_path):
    with pytest.raises(DataError, match=r"has no directory \*_att"):
        FeatureFolders(tmp_path)
    (folders / "other_att").mkdir()
    with pytest.raises(DataError, match="has bu_att and other_att; leave one of them"):
        FeatureFolders(folders)


def test_arrays_in_fortran_order(tmp_path):
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", np.asfortranarray(expected))
    np.testing.assert_array_equal(read_small_array(tmp_path / "a.npy"), expected)


@FUZZ
@given(data=st.data())
def test_damaged_archives_bring_a_data_error_or_numbers(tmp_path, data):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, feat=IMAGES[0].features)
    whole = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.npz"
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        found = read_small_array(path, key="feat")
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert found.dtype.kind in "fiu"
