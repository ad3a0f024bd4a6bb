"""Writes the files of a dataset on Apache Beam: many workers, side by side.

Each file is planned and written as one process would do it (`shards.py`), by a worker that opens a
source of its own and reads the images of that file alone; what passes between workers are file
numbers and statistics. So the files are byte for byte the same.

The dataset's directory, and those of the features, must be the same for all workers: local ones
when they are processes of this machine, else ones that all of them mount, or a bucket (gs://...).
Beam comes with the extra "beam".
"""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import tensorflow as tf

from data_pipeline.errors import DataError
from data_pipeline.region_captions import schema
from data_pipeline.shards import BadRecords, Shard, Written, write_shard
from data_pipeline.sources.source import Source
from data_pipeline.split_statistics import Statistics
from data_pipeline.stopping import Stopped, on_stop

_disabled = logging.root.manager.disable
logging.disable(logging.WARNING)  # At import Beam warns of Google clients that nobody asked for.
try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment
except ModuleNotFoundError as error:
    raise DataError(f'--beam needs Apache Beam ({error}); pip install "xmodal_jax[beam]"') from None
finally:
    logging.disable(_disabled)

_OUTCOME = "outcome.jsonl"  # The pipeline's result, for the process that started it.
_ERROR = "error.txt"  # What a worker that gave up says, and a sign for the others to stop.
_STOPPED = "signal "  # So it begins, before the number, when nobody gave up.
# One local worker. Beam's own command breaks on a path with a space and logs each of its steps.
# Ctrl-C goes to all processes, and a scheduler's SIGTERM may; Beam would wait for ever for a worker
# that they end.
_WORKER = (
    "import logging, signal; logging.disable(logging.WARNING); "
    "signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "from apache_beam.runners.worker import sdk_worker_main; sdk_worker_main.main([])"
)


class BeamWriter:
    """Writes shards as `region_captions.build_dataset` asks for, with many workers."""

    def __init__(
        self,
        make_source: Callable[[], Source],
        workers: int = 1,
        beam_args: Sequence[str] = (),
    ) -> None:
        """
        Args:
          make_source: picklable, e.g. functools.partial(ScanPrecomp, "flickr8k", name="flickr8k").
          workers: processes of this machine; 1 is this process itself.
          beam_args: options of another runner, e.g. --runner=DataflowRunner --project=...; then
            `workers` does not matter.

        Raises:
          DataError: Beam does not know the runner, or an option without one.
        """
        self._make_source, self._workers = make_source, workers
        # Without a list PipelineOptions would read sys.argv.
        self._options = PipelineOptions([f"--direct_num_workers={workers}", *beam_args])
        with _quiet_beam():
            self._local = "runner" not in self._options.get_all_options(drop_default=True)
            if self._local:
                _check_known(self._options)
        self._pipeline()  # What is wrong with a runner is told before any work.

    def _pipeline(self) -> beam.Pipeline:
        runner = _local(self._workers) if self._local else None
        try:
            return beam.Pipeline(runner=runner, options=self._options)
        except (ValueError, ImportError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"Beam can't run with the options behind -- ({reason})") from None

    def __call__(
        self, shards: Sequence[Shard], source: Source, directory: str, on_bad: BadRecords
    ) -> list[Written]:
        """Writes all shards into a directory; returns what became of them, in their order.

        Raises:
          DataError: as `write_shard`.
        """
        outcome, error = os.path.join(directory, _OUTCOME), os.path.join(directory, _ERROR)
        around = _on_this_machine(error) if self._local else contextlib.nullcontext()
        with around, self._pipeline() as pipeline:
            _ = (
                pipeline
                | beam.Create(shards)
                | beam.Reshuffle()  # Without it one worker would get them all.
                | beam.ParDo(_WriteShard(self._make_source, directory, on_bad))
                | beam.CombineGlobally(_Collect())
                | beam.Map(_save, outcome)
            )
        if tf.io.gfile.exists(error):
            with tf.io.gfile.GFile(error) as file:
                message = file.read()
            if message.startswith(_STOPPED):
                raise Stopped(int(message.removeprefix(_STOPPED)))
            raise DataError(message)
        with tf.io.gfile.GFile(outcome) as file:
            written = [Written.from_json(json.loads(line)) for line in file.read().splitlines()]
        by_shard = {done.shard: done for done in written}
        return [by_shard[shard] for shard in shards]


class _WriteShard(beam.DoFn):
    """From a Shard to Written, or to a file: Beam would try again what is wrong in the data."""

    def __init__(
        self, make_source: Callable[[], Source], directory: str, on_bad: BadRecords
    ) -> None:
        self._make_source, self._directory, self._on_bad = make_source, directory, on_bad
        self._source: Source | None = None
        self._error, self._next_look = os.path.join(directory, _ERROR), 0.0

    def process(self, shard: Shard) -> Iterator[Written]:
        try:
            self._look()
            if self._source is None:
                self._source = self._make_source()
            features = schema(self._source.feature_width)
            yield write_shard(
                shard, self._source, self._directory, features, self._on_bad, self._look
            )
        except _GivenUp:
            pass
        except DataError as reason:
            with tf.io.gfile.GFile(self._error, "w") as file:
                file.write(str(reason))

    def _look(self) -> None:
        """Raises _GivenUp if another worker gave up or the user did; looks once a second."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + 1
            if tf.io.gfile.exists(self._error):
                raise _GivenUp


class _GivenUp(Exception):
    """The whole build is given up."""


class _Collect(beam.CombineFn):
    """All shards; a split's statistics are added up in one of them, the others have empty ones."""

    def create_accumulator(self) -> list[Written]:
        return []

    def add_input(self, accumulator: list[Written], done: Written) -> list[Written]:
        split = done.shard.split
        first = next((other for other in accumulator if other.shard.split == split), None)
        own = Statistics()
        (first.statistics if first else own).merge(done.statistics)
        accumulator.append(dataclasses.replace(done, statistics=own))
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Written]]) -> list[Written]:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            for done in accumulator:
                merged = self.add_input(merged, done)
        return merged

    def extract_output(self, accumulator: list[Written]) -> list[Written]:
        return accumulator


def _save(written: list[Written], path: str) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("".join(f"{json.dumps(done.to_json())}\n" for done in written))


def _check_known(options: PipelineOptions) -> None:
    """DataError for what Beam would leave out without a word."""
    everything = options.get_all_options(retain_unknown_options=True)
    if unknown := sorted(everything.keys() - options.get_all_options().keys()):
        raise DataError(
            f"--{unknown[0]} behind -- is no option of Beam without a --runner; correct it"
        )


@contextlib.contextmanager
def _on_this_machine(error: str) -> Iterator[None]:
    """SIGINT and SIGTERM make the workers give up, as Beam would wait for them."""

    def give_up(number: int) -> None:
        with tf.io.gfile.GFile(error, "w") as file:
            file.write(f"{_STOPPED}{number}")

    with on_stop(give_up), _quiet_beam():
        yield


def _local(workers: int) -> FnApiRunner:
    """Workers on this machine. The runner called DirectRunner would first download a program."""
    if workers == 1:
        return FnApiRunner()
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(_WORKER)}"
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))


@contextlib.contextmanager
def _quiet_beam() -> Iterator[None]:
    """Silences Beam but for errors."""
    logger = logging.getLogger("apache_beam")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
