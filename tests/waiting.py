"""Waiting for what a running program writes."""

import time

import pytest


def lines_in(log):
    """Number of lines of a file, 0 where there is none."""
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for_lines(processes, log, count, seconds=120):
    """Returns when the log has so many lines; fails if a process ends before, or it takes long."""
    deadline = time.monotonic() + seconds
    while lines_in(log) < count:
        if any(process.poll() is not None for process in processes):
            pytest.fail(f"a process ended by itself: {[p.communicate() for p in processes]}")
        if time.monotonic() > deadline:
            pytest.fail(f"no {count} lines in {log} after {seconds} seconds")
        time.sleep(0.05)
