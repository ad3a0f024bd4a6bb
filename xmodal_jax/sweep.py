"""Trains and evaluates several variants of a configuration with several seeds, one after another.

  python -m xmodal_jax.sweep --config=configs/demo.py --variants=teran,mean_pooled --seeds=3 \\
    --out=runs/demo
  python -m xmodal_jax.sweep --config=configs/demo.py --variants=teran --out=runs/long \\
    -- --config.train.steps=2000 --config.optimizer.learning_rate=1e-3

Each member is the very command you would type, in its own workdir OUT/VARIANT/seedN; --dry_run
prints them, and what follows -- is given to all of them. Seed 0 of every variant comes first, so
that a sweep which is stopped early has one row for each variant.

The same command continues a sweep: members that are finished are skipped, a member that was
interrupted goes on from its last checkpoint, and one that failed is tried again. Ctrl-C and SIGTERM
let the running member save. More seeds or variants may be added later. What a member prints is in
its workdir's output.txt. The table at the end is that of

  python -m xmodal_jax.results OUT/*/seed* --split test --group
"""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

import ml_collections
from absl import flags
from ml_collections import config_flags

from xmodal_jax import results, run_record
from xmodal_jax.errors import UserError
from xmodal_jax.metrics.ranking import PROTOCOLS
from xmodal_jax.report import files as report_files
from xmodal_jax.scoring import evaluation_path, report_path, scoring_name
from xmodal_jax.workdir import differences

# What the sweep itself says to its members.
_RESERVED = (
    "config",
    "workdir",
    "mode",
    "config.seed",
    "config.evaluate.split",
    "config.evaluate.protocol",
    "config.evaluate.score",
)
# What a member prints is in its log at once, and a progress bar does not fill that.
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "10"}


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str  # VARIANT/seedN
    workdir: Path
    arguments: tuple[str, ...]  # of main: configuration, workdir, overrides
    split: str
    protocol: str

    @property
    def train_command(self) -> list[str]:
        """As a user would type it."""
        return [sys.executable, "-m", "xmodal_jax.main", *self.arguments]

    @property
    def evaluate_command(self) -> list[str]:
        """As a user would type it."""
        evaluate = [f"--config.evaluate.{k}={getattr(self, k)}" for k in ("split", "protocol")]
        return [*self.train_command, "--mode=evaluate", *evaluate]

    @property
    def evaluation(self) -> Path:
        """The file which the second command writes; the workdir has its configuration."""
        return evaluation_path(self.workdir, self.split, self.protocol, self._scoring())

    @property
    def report(self) -> Path:
        """The report which the second command writes; evaluations of older versions have none."""
        directory = report_path(self.workdir, self.split, self.protocol, self._scoring())
        return directory / report_files.JSON

    def _scoring(self) -> str:
        config = json.loads((self.workdir / "config.json").read_text())
        return scoring_name(config.get("evaluate", {}))

    @property
    def rsum(self) -> float:
        """Of its evaluation."""
        return json.loads(self.evaluation.read_text())["metrics"]["rsum"]

    def steps(self) -> tuple[int, int]:
        """Steps done, and steps to be done, of what is in the workdir."""
        config = json.loads((self.workdir / "config.json").read_text())
        return run_record.read(self.workdir).get("steps", 0), config["train"]["steps"]

    def is_finished(self) -> bool:
        """Whether the workdir has evaluation and report of a whole run of this configuration.

        Where that differs, main is asked, which knows the differences that do not matter.
        """
        path = self.workdir / "config.json"
        if not path.is_file() or not self.evaluation.is_file() or not self.report.is_file():
            return False
        done, steps = self.steps()
        config = load_config(self.arguments)
        if config is None or done < steps:
            return False
        return next(differences(self.workdir, config), None) is None


def load_config(arguments: Sequence[str]) -> ml_collections.ConfigDict | None:
    """The configuration main makes of its flags; None if they are wrong, which main explains."""
    values = flags.FlagValues()
    argv = ["main", *arguments]
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv, known_only=True)
        return config.value.copy_and_resolve_references()
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError):
        return None


class Relay:
    """Runs a child at a time; passes SIGINT and SIGTERM on to it, and remembers them."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._child: subprocess.Popen | None = None
        self._undelivered: signal.Signals | None = None

    def __enter__(self) -> "Relay":
        numbers = signal.SIGINT, signal.SIGTERM
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = self._undelivered = signal.Signals(number)
        self._deliver()

    def _deliver(self) -> None:
        if self._child is not None and self._undelivered is not None:
            number, self._undelivered = self._undelivered, None
            self._child.send_signal(number)

    def run(self, command: Sequence[str], output: TextIO) -> int:
        """Runs a command to its end; returns its exit code, below 0 if a signal killed it."""
        # In a group of its own: a terminal's Ctrl-C would reach it beside the one passed on, and
        # the second stops a run at once.
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | _ENVIRONMENT,
            process_group=0,
        )
        self._deliver()  # what came while it was being started
        try:
            return self._child.wait()
        finally:
            self._child = None


def run_member(member: Member, relay: Relay) -> str:
    """Trains and evaluates a member; returns what went wrong, or nothing."""
    member.workdir.mkdir(parents=True, exist_ok=True)
    for command in (member.train_command, member.evaluate_command):
        with (member.workdir / "output.txt").open("a+") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            start = log.tell()
            code = relay.run(command, log)
            log.seek(start)
            output = log.read()
        if relay.received:
            return f"stopped by {relay.received.name}"
        if code:
            return _last_error(output, code)
        done, steps = member.steps()
        if done < steps:
            return f"it was stopped at step {done} of {steps}"
    missing = [path for path in (member.evaluation, member.report) if not path.is_file()]
    return f"{missing[0]} was not written" if missing else ""


def _last_error(output: str, code: int) -> str:
    """The last line of what a command wrote, which is its error."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def run_all(members: Sequence[Member], relay: Relay) -> dict[Member, bool]:
    """Runs members until a signal comes, a line for each; returns which succeeded."""
    succeeded = {}
    for number, member in enumerate(members, 1):
        print(f"[{number}/{len(members)}] {member.name}: ", end="", flush=True)
        if member.is_finished():
            print(f"was finished, rsum {member.rsum:.1f}")
            succeeded[member] = True
            continue
        began = time.perf_counter()
        problem = run_member(member, relay)
        took = _duration(time.perf_counter() - began)
        if relay.received:
            print(f"{problem} after {took}; the same command continues the sweep")
            break
        succeeded[member] = not problem
        print(f"failed after {took}: {problem}" if problem else f"{took}, rsum {member.rsum:.1f}")
    return succeeded


def make_members(args: argparse.Namespace, overrides: Sequence[str]) -> list[Member]:
    """All members, in the order in which they run.

    Raises:
      UserError: the arguments contradict each other.
    """
    if ":" in args.config:
        raise UserError(f"--config={args.config} has a variant; give that as --variants")
    if args.seeds < 1:
        raise UserError(f"--seeds={args.seeds}; give 1 or more")
    variants = args.variants.split(",")
    if len(set(variants)) < len(variants) or not all(variants):
        raise UserError(f"--variants={args.variants} has a variant twice, or one without a name")
    for word in overrides:
        if (name := word.lstrip("-").split("=")[0]) in _RESERVED:
            raise UserError(f"--{name} is set by the sweep; leave it out behind --")
    members = []
    for seed in range(args.seeds):
        for variant in variants:
            workdir = args.out / variant / f"seed{seed}"
            given = (
                f"--config={args.config}:{variant}",
                f"--workdir={workdir}",
                f"--config.seed={seed}",
                *overrides,
            )
            name = f"{variant}/seed{seed}"
            members.append(Member(name, workdir, given, args.split, args.protocol))
    return members


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        prog="python -m xmodal_jax.sweep",
        usage="%(prog)s --config=FILE --variants=A,B --out=DIR [--seeds=N]\n"
        "         [--split=test] [--protocol=full] [--dry_run] [-- --config.FIELD=VALUE ...]",
    )
    parser.add_argument("--config", required=True, help="configuration file, without a variant")
    parser.add_argument("--variants", required=True, help="its variants, with commas between them")
    parser.add_argument("--seeds", type=int, default=1, help="how many: 0 to N - 1 (default: 1)")
    parser.add_argument("--out", required=True, type=Path, help="directory of the sweep")
    parser.add_argument("--split", default="test", help="evaluated in the end (default: test)")
    parser.add_argument("--protocol", default="full", choices=PROTOCOLS, help="default: full")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    return parser


def _print_commands(members: Sequence[Member]) -> None:
    for member in members:
        if member.is_finished():
            print(f"# {member.name} is finished")
            continue
        for command in (member.train_command, member.evaluate_command):
            print(shlex.join(command))


def _print_table(members: Sequence[Member]) -> None:
    if members:
        split = ["--split", members[0].split, "--protocol", members[0].protocol]
        results.main([*(str(member.workdir) for member in members), *split, "--group"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sweep and prints its table.

    Returns the exit code: 1 if a member failed, 2 for a mistake, 128 + its number after a signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = _parser()
    args, unknown = parser.parse_known_args(words[:end])
    if unknown:
        parser.error(f"{unknown[0]} is no option of the sweep; those of its members come after --")
    try:
        members = make_members(args, words[end + 1 :])
        if args.dry_run:
            _print_commands(members)
            return 0
        with Relay() as relay:
            succeeded = run_all(members, relay)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print_table([member for member, well in succeeded.items() if well])
    failed = [member for member, well in succeeded.items() if not well]
    for member in failed:
        print(f"failed: {member.name}, see {member.workdir}/output.txt", file=sys.stderr)
    if relay.received:
        return 128 + relay.received
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
