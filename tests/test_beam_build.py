"""A dataset written by Beam's workers: the files of one process, and never a part for the whole."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf

pytest.importorskip("apache_beam", reason='pip install -e ".[beam]"')
from data_pipeline import build as build_program
from data_pipeline.beam_build import BeamWriter
from data_pipeline.errors import DataError
from data_pipeline.region_captions import build_dataset, dataset_path, open_dataset
from data_pipeline.shards import BadRecords
from data_pipeline.synthetic import SyntheticScenes

SCENES = functools.partial(SyntheticScenes, {"train": 40, "dev": 8})


class Spoilt(SyntheticScenes):
    def read(self, split, index):
        if index in (1, 22):
            raise DataError(f"{split} row {index} is bad; remove it")
        return super().read(split, index)


def build_on_beam(make_source, data_dir, *, workers=1, **options):
    write = BeamWriter(make_source, workers)
    return build_dataset(make_source(), data_dir, write=write, **options)


SPOILT = functools.partial(Spoilt, {"train": 40})


def files(data_dir):
    return {path.name: path.read_bytes() for path in dataset_path(data_dir, "scenes").iterdir()}


@pytest.mark.parametrize("workers", [1, 2])
def test_files_are_those_of_one_process(tmp_path, workers):
    assert build_dataset(SCENES(), tmp_path / "loop")
    assert build_on_beam(SCENES, tmp_path / "beam", workers=workers)
    assert files(tmp_path / "beam") == files(tmp_path / "loop")
    assert not build_on_beam(SCENES, tmp_path / "beam", workers=workers)


def test_the_command_line_takes_beam(tmp_path, capsys):
    words = ["synthetic", "--train", "40", "--dev", "8", "--test", "0", "--out"]
    assert build_program.main([*words, str(tmp_path / "loop")]) == 0
    beam = [*words, str(tmp_path / "beam"), "--beam", "--workers", "1", "--", "--save_main_session"]
    assert build_program.main(beam) == 0
    assert files(tmp_path / "beam") == files(tmp_path / "loop")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--", "--runner=FlinkRunner"],
            "--runner=FlinkRunner behind -- is an option of Beam; add",
        ),
        (["--workers", "3"], "--workers=3 are processes of Beam; add --beam"),
        (["--beam", "--", "--job_nam=x"], "--job_nam behind -- is no option of Beam"),
        (["--beam", "--", "--runner=Spork"], "Unexpected pipeline runner: Spork"),
        (["--beam", "--", "--runner=no.such.Runner"], "No module named 'no'"),
    ],
)
def test_options_that_do_nothing_are_mistakes(tmp_path, capsys, options, expected):
    words = ["synthetic", "--train", "4", "--dev", "0", "--test", "0", "--out", str(tmp_path)]
    assert build_program.main([*words, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
    assert not list(tmp_path.iterdir())


SLOW = """if True:
    import os, pathlib, sys, time
    parent = os.getpid()
    begun = pathlib.Path(sys.argv[1])
    from data_pipeline import build
    from data_pipeline.synthetic import SyntheticScenes

    class Slow(SyntheticScenes):
        def read(self, split, index):
            if os.getpid() != parent:
                begun.touch()
                time.sleep(0.2)
            return super().read(split, index)

    build.SyntheticScenes = Slow
    sys.exit(build.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("at_work", "to_all", "sent"), [(False, False, signal.SIGTERM), (True, True, signal.SIGINT)]
)
def test_a_signal_ends_the_workers_too(tmp_path, at_work, to_all, sent):
    """To one process alone, as `kill` and job schedulers send it, or to all, as a terminal does.

    When workers are not at work yet, Beam by itself waits for them for ever.
    """
    words = ["synthetic", "--train", "4000", "--out", str(tmp_path / "data")]
    parent = dataset_path(tmp_path / "data", "scenes").parent
    command = [
        sys.executable,
        "-c",
        SLOW,
        str(tmp_path / "begun"),
        *words,
        "--beam",
        "--workers",
        "2",
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            wait_for(tmp_path, "begun" if at_work else "data/**/.staging-*")
            time.sleep(0 if at_work else 1)  # The processes are there, and begin with imports.
            (os.killpg if to_all else os.kill)(process.pid, sent)
            # All of it would take 400 seconds.
            assert process.wait(120) == 128 + sent
            assert process.stderr.read().splitlines()[-1] == "stopped; the same command builds it"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert [path.name for path in parent.iterdir()] == [".lock"]


def wait_for(directory, pattern):
    for _ in range(1200):
        if any(directory.glob(pattern)):
            return
        time.sleep(0.1)
    raise AssertionError(f"no {pattern} after two minutes")


def test_a_bucket_gets_the_same_files(tmp_path):
    """TensorFlow's file system in memory, which has no directories to rename."""
    bucket = f"ram://{tmp_path.name}"
    assert build_dataset(SCENES(), tmp_path)
    assert build_on_beam(SCENES, bucket)
    path = f"{bucket}/region_captions/scenes/1.0.0"
    expected = files(tmp_path)
    assert set(tf.io.gfile.listdir(path)) == set(expected)
    for name, data in expected.items():
        assert tf.io.gfile.GFile(f"{path}/{name}", "rb").read() == data


def test_bad_records_stop_or_are_left_out(tmp_path):
    with pytest.raises(DataError) as caught:
        build_on_beam(SPOILT, tmp_path)
    assert str(caught.value).endswith("is bad; remove it")  # Beam adds nothing.
    with pytest.raises(DataError, match="2 images are bad, more than --max-bad=1"):
        build_on_beam(SPOILT, tmp_path, on_bad=BadRecords(skip=True, limit=1))
    assert [path.name for path in dataset_path(tmp_path, "scenes").parent.iterdir()] == [".lock"]
    assert build_on_beam(SPOILT, tmp_path, on_bad=BadRecords(skip=True))
    builder = open_dataset(tmp_path, "scenes")
    stored = [int(one["index"]) for one in builder.as_dataset(split="train").as_numpy_iterator()]
    assert stored == [index for index in range(40) if index not in (1, 22)]
    assert builder.info.metadata["left_out"] == {"train": 2}


def test_killed_build_leaves_nothing_that_counts(tmp_path):
    program = f"""if True:
        import os, signal
        from data_pipeline.beam_build import BeamWriter
        from data_pipeline.region_captions import build_dataset
        from data_pipeline.synthetic import SyntheticScenes
        class Killed(SyntheticScenes):
            def read(self, split, index):
                if split == "dev" and index == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().read(split, index)
        make = lambda: Killed({{"train": 40, "dev": 8}})
        build_dataset(make(), {str(tmp_path)!r}, write=BeamWriter(make))
    """
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert any(".tfrecord" in name for _, _, names in os.walk(tmp_path) for name in names)
    with pytest.raises(DataError, match="no dataset 'scenes'"):
        open_dataset(tmp_path, "scenes")
    assert build_on_beam(SCENES, tmp_path)
    parent = dataset_path(tmp_path, "scenes").parent
    assert sorted(path.name for path in parent.iterdir()) == [".lock", "1.0.0"]
