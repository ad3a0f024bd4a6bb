"""How a training step would scale, from programs compiled for fake devices; nothing is run.

  python -m tests.benchmarks.scaling
  python -m tests.benchmarks.scaling --config=configs/coco.py:cmsei --devices=8,64 \\
    --config.partition=fsdp+tensor --config.mesh.model=4

Compiles the full-size step with a batch that grows with the devices, reads from the program what a
device sends and how much memory it needs, and prints a JSON line for each number of devices, then
a table of the step times that follow for real chips, and of the images a second that a chip has in
them relative to the first line. Assumed are

* the published peak of bfloat16 products and bandwidth between chips, below; of the peak, products
  reach --efficiency;
* that communication is not hidden behind computation (the worst case), and that ring collectives
  use all links of a chip;
* for H200 more than eight, the network between nodes instead of NVLink.

XLA for CPU decides here where collectives go and in which precision; that of a TPU may do better.
"""

import json
import os
import subprocess
import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", "configs/coco.py:teran", "Configuration.")
_DEVICES = flags.DEFINE_list("devices", ["1", "8", "64", "256"], "Numbers of devices.")
_ROWS = flags.DEFINE_integer("rows", 32, "Images and captions of a batch for each device.")
_TOKENS = flags.DEFINE_integer("tokens", 32, "Tokens a caption is padded to.")
_EFFICIENCY = flags.DEFINE_float("efficiency", 0.4, "Share of the peak that products reach.")
_HERE = flags.DEFINE_bool("here", False, "Compile for the devices of this process only.")

# Peak TFLOP/s in bfloat16, GB/s a chip can send to others. Google Cloud's and NVIDIA's data sheets.
CHIPS = {
    "TPU v5e": (197, 200),
    "TPU v5p": (459, 600),
    "TPU v6e": (918, 448),
    "H200": (989, 450),
}
_BETWEEN_NODES = 50  # GB/s for each H200: a 400 Gbit/s adapter.


def measure(devices: int) -> dict[str, float]:
    """Compiles the step for all devices of this process."""
    import jax

    from tests.benchmarks.compiled_program import collectives, product_flops
    from xmodal_jax import optimizer, partitioning, train_state
    from xmodal_jax.models import build_model
    from xmodal_jax.models.batch import batch_spec
    from xmodal_jax.partition_presets import preset_rules
    from xmodal_jax.train_step import make_train_step

    config = _CONFIG.value
    config.data.max_tokens = _TOKENS.value
    config.train.batch_size = _ROWS.value * devices
    config.train.encode_parts, config.model.dtype = 1, "bfloat16"
    if config.model.text.get("pretrained"):
        config.model.text.pretrained = ""  # The sizes are the configuration's.
    model = build_model(config.model, 2048, 30522, 50)
    mesh = partitioning.make_mesh(config.mesh.data, config.mesh.model)
    spec = batch_spec(config, 2048)
    params = train_state.abstract_params(model, spec)
    tx, _ = optimizer.make_optimizer(config.optimizer, params, config.train.steps)
    abstract = train_state.abstract_state(params, tx)
    preset = preset_rules(config.partition, params, mesh)
    shardings = partitioning.shardings(abstract, config.partition_rules, mesh, preset)
    placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    state = jax.tree.map(placed, abstract, shardings)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = {name: placed(x, rows) for name, x in spec.items()}
    frozen = optimizer.frozen_mask(params, tuple(config.optimizer.frozen))
    step = make_train_step(model, tx, config, frozen=frozen, mesh=mesh)
    traced = step.trace(state, batch)
    compiled = traced.lower().compile()
    sent, memory = collectives(compiled.as_text()), compiled.memory_analysis()
    return {
        "devices": devices,
        "batch_size": config.train.batch_size,
        "gflop": product_flops(traced.jaxpr.jaxpr) / devices / 1e9,
        "sent_mb": sum(x.bytes for x in sent.values()) / 1e6,
        "state_mib": memory.argument_size_in_bytes / 2**20,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        **{kind: x.count for kind, x in sent.items()},
    }


def predicted(line: dict[str, float], chip: str, efficiency: float) -> float:
    """Milliseconds of a step."""
    peak, bandwidth = CHIPS[chip]
    if chip == "H200" and line["devices"] > 8:
        bandwidth = _BETWEEN_NODES
    compute = line["gflop"] / (peak * efficiency)
    send = line["sent_mb"] / bandwidth
    return compute + send


def table(lines: list[dict[str, float]], efficiency: float) -> str:
    """Markdown: a row for each number of devices."""
    head = ["devices", "batch", "GFLOP a device", "MB sent", "MiB a device", *CHIPS]
    rows = [head, ["---"] * len(head)]
    # Every device has as many images: the time alone decides.
    firsts = [predicted(lines[0], chip, efficiency) for chip in CHIPS]
    for line in lines:
        times = [predicted(line, chip, efficiency) for chip in CHIPS]
        memory = line["state_mib"] + line["temporary_mib"]
        rows.append(
            [
                f"{line['devices']}",
                f"{line['batch_size']:,}",
                f"{line['gflop']:,.0f}",
                f"{line['sent_mb']:,.0f}",
                f"{memory:,.0f}",
                *(
                    f"{ms:.1f} ms, {100 * first / ms:.0f} %"
                    for ms, first in zip(times, firsts, strict=True)
                ),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(argv: list[str]) -> None:
    """Compiles in a process of its own for every number of devices: it is fixed at the start."""
    if _HERE.value:
        print(json.dumps(measure(int(_DEVICES.value[0]))))
        return
    lines = []
    for devices in _DEVICES.value:
        command = [sys.executable, "-m", "tests.benchmarks.scaling", *argv[1:], *sys.argv[1:]]
        flag = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [*command, "--here", f"--devices={devices}"],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(done.stdout.splitlines()[-1], flush=True)
        lines.append(json.loads(done.stdout.splitlines()[-1]))
    print(table(lines, _EFFICIENCY.value))


if __name__ == "__main__":
    app.run(main)
