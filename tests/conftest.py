"""Every test sees eight CPU devices, compiles fast, and fails on silent rank promotion."""

import os
from pathlib import Path

# Before JAX is imported. Hardly optimised code compiles faster than it runs slower here; at level 0
# XLA may compute a value twice with different rounding, which a derivative by equality can't take.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1 "
    # Eight devices share few cores: on a busy machine one may arrive minutes after the others.
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 "
    "--xla_cpu_collective_timeout_seconds=600"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Two programs with collectives in flight on fake devices may wait for each other for ever.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

# For the programs that tests start. Here there are fake devices, and a program for several that
# comes from the cache may wait for ever in a collective (JAX 0.10).
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Float64 within the test."""
    with jax.enable_x64(True):
        yield
