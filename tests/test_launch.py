"""The launch scripts as far as they can be checked without a cloud.

Their dry runs run nothing and print commands whose flags, modules and files exist; the manifests
parse and agree with themselves; what happens after a signal is tried with stand-ins for the
training and for Slurm.
"""

import configparser
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from absl import flags
from flax.traverse_util import flatten_dict

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))
# Programs that would change something: in the tests all of them fail.
STUBS = ["curl", "docker", "gcloud", "gcsfuse", "git", "kubectl", "pip", "sudo", "uv"]
STUBS += ["sbatch", "scancel", "scontrol", "srun"]
TRAIN = ["--config=configs/coco.py:teran", "--workdir=/bucket/runs/coco"]
TRAIN += ["--config.mesh.model=2", "--config.data.dir=gs://b/data"]
KINDS = ["tpu", "gpu"]
TPU = {"PROJECT": "p", "ZONE": "z", "BUCKET": "b"}
GKE = {"IMAGE": "host/image:1", "BUCKET": "b"}
# What is run: a script, its arguments, its settings. Each sub-command of each script is among them.
CASES = [
    ("ablation.sh", ["demo"], {}),
    ("compare.sh", ["demo"], {}),
    ("demo.sh", [], {}),
    ("family.sh", ["demo", "--seeds=1"], {}),
    ("install.sh", [], {}),
    ("install.sh", ["test"], {}),
    ("local.sh", ["cpu", "--devices=8", *TRAIN], {}),
    ("local.sh", ["cuda", *TRAIN], {}),
    ("local.sh", ["tpu", *TRAIN], {}),
    ("preemptible.sh", ["--forward", "python", "-m", "xmodal_jax.main", *TRAIN], {}),
    ("slurm_gpu.sbatch", TRAIN, {}),
    ("test.sh", ["-k", "launch"], {}),
    *[("tpu_vm.sh", [c], TPU) for c in ("create", "status", "setup", "logs", "stop", "delete")],
    ("tpu_vm.sh", ["run", *TRAIN], TPU),
    ("tpu_vm.sh", ["create"], TPU | {"QUEUED": "0", "SPOT": "1", "ACCELERATOR": "v6e-64"}),
    ("tpu_vm.sh", ["delete"], TPU | {"QUEUED": "0"}),
    *[("tpu_worker.sh", [c], TPU) for c in ("setup", "stop", "status", "idle")],
    ("tpu_worker.sh", ["start", *TRAIN], TPU),
    *[
        ("gke.sh", [c, k], GKE)
        for c in ("image", "status", "logs", "delete")
        for k in ("tpu", "gpu")
    ],
    *[("gke.sh", ["run", kind, *TRAIN], GKE) for kind in KINDS],
]
IDS = [" ".join([name, *[a for a in arguments if "=" not in a]]) for name, arguments, _ in CASES]


@pytest.fixture
def checkout(tmp_path):
    """The launch scripts alone, with programs on the PATH that fail when they are called."""
    shutil.copytree(LAUNCH, tmp_path / "code" / "launch")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "code")
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in STUBS:
        script(stubs / name, f"echo {name} was called >&2; exit 97")
    (tmp_path / "home").mkdir()
    return tmp_path


def script(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def environment(checkout, **settings):
    """Nothing of the tests' own environment counts."""
    path = [str(checkout / "stubs"), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
    return {"PATH": ":".join(path), "HOME": str(checkout / "home")} | settings


def launch(checkout, name, arguments, **settings):
    command = ["bash", f"launch/{name}", *arguments]
    env = environment(checkout, **settings)
    return subprocess.run(
        command, cwd=checkout / "code", env=env, capture_output=True, text=True, timeout=60
    )


def dry_run(checkout, case):
    name, arguments, settings = case
    result = launch(checkout, name, arguments, DRY_RUN="1", **settings)
    assert result.returncode == 0, result.stderr
    assert "was called" not in result.stderr
    return result.stdout


def files_of(directory):
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*"))


def test_every_script_has_a_dry_run_here():
    assert {p.name for p in SCRIPTS} == {name for name, *_ in CASES}
    for path in SCRIPTS:
        usage = re.search(r"^# usage: (.*)", path.read_text(), re.MULTILINE)[1]
        offered = re.search(r"\.sh ([a-z]+(?:\|[a-z0-9]+)+) ", usage + " ")
        if not offered or path.name in ("family.sh", "ablation.sh", "compare.sh"):
            continue
        tried = {arguments[0] for name, arguments, _ in CASES if name == path.name}
        assert set(offered[1].split("|")) - {"cuda12"} == tried, path.name


@pytest.mark.parametrize("path", [*SCRIPTS, LAUNCH / "common.bash", ROOT / ".ci" / "run"], ids=str)
def test_scripts_pass_shellcheck(path):
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "shellcheck is missing; pip install -e '.[test]' brings it"
    subprocess.run(["bash", "-n", path], check=True)
    subprocess.run([found, "--external-sources", path], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", [*SCRIPTS, LAUNCH / "Dockerfile"], ids=lambda p: p.name)
def test_scripts_say_how_to_use_them_before_anything_else(path):
    head = re.match(r"(#.*\n)+", path.read_text())[0]
    kind = {".sbatch": "sbatch ", ".sh": f"bash launch/{path.name}"}.get(
        path.suffix, "docker build"
    )
    assert f"# usage: {kind}" in head
    # Directly after what it is for.
    assert head.index("# usage:") < 400


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_dry_run_prints_and_runs_nothing(checkout, case):
    before = files_of(checkout)
    assert dry_run(checkout, case).strip()
    assert files_of(checkout) == before


def commands(text):
    """The commands that a dry run prints, those sent to other machines too, without manifests."""
    lines = text.split("\n# ")[0].splitlines()
    for line in lines:
        words = shlex.split(line)
        yield words
        for word in words:
            if word.startswith("--command="):
                for part in word.removeprefix("--command=").split("&&"):
                    yield shlex.split(part)


def python_commands(checkout):
    """Module and arguments of all Python programs that all dry runs and manifests start."""
    for case in CASES:
        text = dry_run(checkout, case)
        found = list(commands(text))
        if case[0] == "gke.sh" and case[1][0] == "run":
            container = pod(manifest(text))["containers"][0]
            found.append(container["command"] + container["args"])
        for words in found:
            if "-m" in words and Path(words[words.index("-m") - 1]).name in ("python", "python3"):
                at = words.index("-m")
                yield words[at + 1], words[at + 2 :]


def options_of(parser, arguments):
    """Those of a parser, and of the sub-command that the arguments name."""
    known = dict(parser._option_string_actions)
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        known |= action.choices[arguments[0]]._option_string_actions
    return known


def test_flags_of_all_commands_exist(checkout):
    """In the flags that xmodal_jax.main defines, or in the parser of another program."""
    seen = set()
    for module, arguments in python_commands(checkout):
        seen.add(module)
        if module in ("pip", "pytest", "uv", "venv"):
            continue
        program = importlib.import_module(program_of(module))
        given = [a for a in arguments if a.startswith("--") and not a.startswith("--config.")]
        names = [a.partition("=")[0] for a in given]
        if module == "xmodal_jax.main":
            unknown = [n for n in names if n.removeprefix("--") not in flags.FLAGS]
        else:
            unknown = [n for n in names if n not in options_of(program._parser(), arguments)]
        assert not unknown, f"{module} has no {unknown}"
    assert seen >= {"xmodal_jax.main", "xmodal_jax.sweep", "xmodal_jax.results", "pytest", "pip"}
    assert seen >= {"xmodal_jax.retrieval", "data_pipeline.build"}


def test_several_processes_are_always_told_so(checkout):
    """Without --distributed each host of a pod would train alone, in the same workdir."""
    for case in CASES:
        if case[0] in ("slurm_gpu.sbatch", "tpu_worker.sh", "gke.sh"):
            text = dry_run(checkout, case)
            assert ("xmodal_jax.main" in text) == ("--distributed" in text)


def text_of_all():
    files = [
        *SCRIPTS,
        *MANIFESTS,
        LAUNCH / "Dockerfile",
        LAUNCH / "README.md",
        LAUNCH / "common.bash",
    ]
    return {path.name: path.read_text() for path in files}


def test_files_that_are_named_exist():
    named = re.compile(
        r"(?<![\w/.~])((?:launch|configs|tests|data_pipeline|xmodal_jax)/[\w./-]*\w)(?![\w./]*[$*])"
    )
    for name, text in text_of_all().items():
        for path in named.findall(text):
            assert (ROOT / path).exists(), f"{name} names {path}"


def program_of(module):
    """The module that `python -m` runs: a file, or the __main__ of a package; None if none."""
    for name in (module, f"{module}.__main__"):
        if (ROOT / (name.replace(".", "/") + ".py")).is_file():
            return name
    return None


def test_modules_that_are_named_exist():
    for name, text in text_of_all().items():
        for module in re.findall(r"-m ((?:xmodal_jax|data_pipeline)[\w.]*)", text):
            assert program_of(module), f"{name} names {module}"


def test_fields_that_are_named_exist():
    from configs import coco

    known = flatten_dict(coco.get_config("teran").to_dict(), sep=".").keys()
    for name, text in text_of_all().items():
        for field in re.findall(r"--config\.([a-z_.]+)=", text):
            assert field in known or field == "field", f"{name} names {field}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_variables_have_a_default(path):
    text = path.read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    used = set(re.findall(r"\$\{?([A-Z][A-Z_]+)(?!\w|:-|\[)", code)) - {"HOME"}
    for name in used:
        assert re.search(rf"(^|[\s(]){name}=", code), f"{name} may be unset"
    if "# Settings" in text or path.name == "tpu_worker.sh":
        head = re.match(r"(#.*\n)+", text)[0]
        for name in re.findall(r"\b([A-Z]+)=\"\$\{\1:-", code):
            assert re.search(rf"\b{name}\b", head), f"{name} is not in the usage"


@pytest.mark.parametrize(
    ("name", "arguments", "settings", "said"),
    [
        ("tpu_vm.sh", ["create"], {"ZONE": "z"}, "PROJECT is not set"),
        ("tpu_vm.sh", ["create"], {"PROJECT": "p"}, "ZONE is not set"),
        ("tpu_vm.sh", ["create"], TPU | {"ACCELERATOR": "v9-8"}, "ACCELERATOR=v9-8"),
        ("tpu_vm.sh", ["run", "--config=configs/demo.py"], TPU, "--workdir=DIR is missing"),
        ("tpu_vm.sh", ["reboot"], TPU, "reboot is not known"),
        ("tpu_vm.sh", [], {}, "usage: bash launch/tpu_vm.sh"),
        ("tpu_worker.sh", ["start"], {}, "--workdir=DIR is missing"),
        ("gke.sh", ["run", "tpu", *TRAIN], {"BUCKET": "b"}, "IMAGE is not set"),
        ("gke.sh", ["run", "tpu", *TRAIN], {"IMAGE": "i"}, "BUCKET is not set"),
        ("gke.sh", ["run", "cpu", *TRAIN], GKE, "tpu or gpu"),
        ("gke.sh", [], GKE, "usage: bash launch/gke.sh"),
        ("slurm_gpu.sbatch", ["--config=configs/demo.py"], {}, "--workdir=DIR is missing"),
        ("local.sh", [], {}, "cpu, cuda, cuda12 or tpu"),
        ("local.sh", ["cpu"], {}, "--config=FILE is missing"),
        ("local.sh", ["cuda", "--devices=8", *TRAIN], {}, "--devices=8 is for cpu"),
        ("preemptible.sh", [], {}, "COMMAND is missing"),
    ],
)
def test_mistakes_are_told_before_any_command(checkout, name, arguments, settings, said):
    result = launch(checkout, name, arguments, **settings)
    assert result.returncode == 2 and said in result.stderr
    assert "was called" not in result.stderr and not result.stdout


def manifest(text):
    return yaml.safe_load(text[text.index("\n# ") :])


def job(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


def pod(manifest):
    return job(manifest)["template"]["spec"]


@pytest.mark.parametrize(
    ("kind", "settings", "hosts", "chips"),
    [
        ("tpu", {}, 4, 4),
        ("tpu", {"TOPOLOGY": "2x2x4", "ACCELERATOR": "tpu-v5p-slice"}, 4, 4),
        ("tpu", {"TOPOLOGY": "2x4", "CHIPS": "8"}, 1, 8),
        ("gpu", {}, 2, 8),
        ("gpu", {"HOSTS": "5", "NAME": "other", "CHIPS": "4"}, 5, 4),
    ],
)
def test_manifests_agree_with_themselves(checkout, kind, settings, hosts, chips):
    awkward = """--config.optimizer.multipliers=(("a\\\\b", 0.1),)"""
    text = dry_run(checkout, ("gke.sh", ["run", kind, *TRAIN, awkward], GKE | settings))
    assert "${" not in text.replace("${...}", "")
    whole = manifest(text)
    name = settings.get("NAME", "xmodal")
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert whole["metadata"]["name"] == name
    assert whole["spec"]["failurePolicy"]["maxRestarts"] >= 10

    assert job(whole)["completions"] == job(whole)["parallelism"] == hosts
    assert job(whole)["completionMode"] == "Indexed" and job(whole)["backoffLimit"] == 0
    spec = pod(whole)
    assert spec["restartPolicy"] == "Never" and spec["terminationGracePeriodSeconds"] >= 120
    (container,) = spec["containers"]
    assert container["image"] == GKE["IMAGE"] and container["args"] == [*TRAIN, awkward]
    resource = {"tpu": "google.com/tpu", "gpu": "nvidia.com/gpu"}[kind]
    assert container["resources"]["limits"] == {resource: str(chips)}
    assert container["resources"]["requests"] == container["resources"]["limits"]

    volumes = {v["name"]: v for v in spec["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} == volumes.keys()
    assert volumes["bucket"]["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    attributes = volumes["bucket"]["csi"]["volumeAttributes"]
    assert attributes["bucketName"] == "b" and " " not in attributes["mountOptions"]
    annotations = job(whole)["template"]["metadata"]["annotations"]
    assert annotations["gke-gcsfuse/volumes"] == "true"

    values = {e["name"]: e["value"] for e in container["env"]}
    assert values["JAX_COMPILATION_CACHE_DIR"] == "/bucket/runs/coco/compiled"
    ports = [p["containerPort"] for p in container["ports"]]
    if kind == "tpu":
        assert int(values["JAX_COORDINATOR_PORT"]) in ports
        return
    given = dict(c[2:].split("=") for c in container["command"] if c.startswith("--") and "=" in c)
    host, port = given["coordinator"].split(":")
    replicated = whole["spec"]["replicatedJobs"][0]["name"]
    assert host == f"{name}-{replicated}-0-0.{name}" and int(port) in ports
    assert int(given["num_processes"]) == hosts
    assert given["process_id"] == "$(JOB_COMPLETION_INDEX)"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_parse_before_they_are_filled_in(path):
    assert yaml.safe_load(path.read_text())["kind"] == "JobSet"


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_runtime_of_an_accelerator(checkout, accelerator, runtime):
    text = dry_run(checkout, ("tpu_vm.sh", ["create"], TPU | {"ACCELERATOR": accelerator}))
    assert f"--accelerator-type={accelerator} --runtime-version={runtime}" in text


def test_flags_reach_the_workers_as_they_were_given(checkout):
    awkward = "--config.optimizer.multipliers=(('a b$c', 1),)"
    text = dry_run(checkout, ("tpu_vm.sh", ["run", *TRAIN, awkward], TPU))
    assert next(words for words in commands(text) if "start" in words)[-5:] == [*TRAIN, awkward]


def test_slurm_starts_one_process_a_gpu_and_is_told_before_the_end():
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in (LAUNCH / "slurm_gpu.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH --")
    )
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert re.fullmatch(r"B:USR1@\d{2,}", options["signal"]) and "requeue" in options


def test_docker_copies_what_is_there_and_runs_without_root():
    text = (LAUNCH / "Dockerfile").read_text()
    shown = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = [
        s for line in re.findall(r"^COPY (.*)", text, re.MULTILINE) for s in line.split()[:-1]
    ]
    assert set(copied) == shown and all((ROOT / source).exists() for source in copied)

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = setup["options.packages.find"]["include"].split()
    assert {p for p in packages if "." not in p} < set(copied)
    extras = setup["options.extras_require"]
    offered = re.search(r"EXTRA=([\w|]+)", text)[1].split("|")
    assert set(offered) <= set(extras) and "ARG EXTRA=cpu" in text
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["xmodal"]
    range_of_jax = re.search(r"^jax(.*)", setup["options"]["install_requires"], re.MULTILINE)[1]
    assert all(extras[name].strip().endswith(range_of_jax) for name in offered)


# Ends with 0 after SIGTERM, as the training does, and after a while without it.
TRAINING = """trap 'echo saved; exit 0' TERM
echo started with "$@"
for _ in $(seq 200); do sleep 0.1; done"""


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(checkout, arguments, **settings):
    command = ["bash", *arguments]
    env = environment(checkout, **settings)
    with open(checkout / "log", "w") as log:
        return subprocess.Popen(
            command, cwd=checkout / "code", env=env, stdout=log, stderr=subprocess.STDOUT
        )


def test_what_saved_and_ended_with_0_after_sigterm_counts_as_unfinished(checkout):
    script(checkout / "training", TRAINING)
    process = start(checkout, ["launch/preemptible.sh", "--forward", checkout / "training", "a b"])
    wait_for(lambda: "started with a b" in (checkout / "log").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert "saved" in (checkout / "log").read_text()


@pytest.mark.parametrize("code", [0, 2, 97])
def test_other_exit_codes_are_passed_on(checkout, code):
    assert launch(checkout, "preemptible.sh", ["bash", "-c", f"exit {code}"]).returncode == code


@pytest.mark.parametrize("told", [signal.SIGUSR1, None])
def test_slurm_job_is_requeued_exactly_if_it_was_told_to_stop(checkout, told):
    """With a srun that starts one task, and a scancel that tells all processes of the step."""
    python = checkout / "code" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, TRAINING if told else "echo started; exit 0")
    stubs = checkout / "stubs"
    script(stubs / "srun", 'while [[ $1 == --* ]]; do shift; done\nexec setsid --wait "$@"')
    script(
        stubs / "scancel", f"echo $* >{checkout}/cancelled\npkill -TERM -s $(cat {checkout}/sid)"
    )
    script(stubs / "scontrol", f"echo $* >{checkout}/requeued")
    script(
        stubs / "setsid",
        f'exec /usr/bin/setsid --wait bash -c \'echo $$ >{checkout}/sid; exec "${{@:2}}"\' - "$@"',
    )
    process = start(checkout, ["launch/slurm_gpu.sbatch", *TRAIN], SLURM_JOB_ID="7")
    wait_for(lambda: "started" in (checkout / "log").read_text())
    if told:
        process.send_signal(told)
    assert process.wait(timeout=20) == (143 if told else 0), (checkout / "log").read_text()
    if told:
        assert (checkout / "cancelled").read_text() == "--signal=TERM 7.0\n"
        assert (checkout / "requeued").read_text() == "requeue 7\n"
        assert "saved" in (checkout / "log").read_text()
    assert (checkout / "requeued").exists() == bool(told)


def test_a_tpu_worker_trains_once_at_a_time_and_stops(checkout):
    python = checkout / "code" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, TRAINING)
    log = checkout / "home" / "xmodal_jax.log"
    first = launch(checkout, "tpu_worker.sh", ["start", *TRAIN])
    assert first.returncode == 0 and "started on" in first.stdout, first.stderr
    assert f"-m xmodal_jax.main --distributed {' '.join(TRAIN)}" in log.read_text()
    assert ": running" in launch(checkout, "tpu_worker.sh", ["status"]).stdout

    for command in (["idle"], ["start", *TRAIN]):
        again = launch(checkout, "tpu_worker.sh", command)
        assert again.returncode == 2 and "a run is under way" in again.stderr
    assert log.read_text().count("started with") == 1

    assert "stopped on" in launch(checkout, "tpu_worker.sh", ["stop"]).stdout
    assert log.read_text().endswith("saved\n")
    assert ": idle" in launch(checkout, "tpu_worker.sh", ["status"]).stdout
    assert launch(checkout, "tpu_worker.sh", ["idle"]).returncode == 0

    script(python, "echo broken; exit 2")
    failed = launch(checkout, "tpu_worker.sh", ["start", *TRAIN])
    assert failed.returncode == 2 and "broken" in failed.stderr and "ended at once" in failed.stderr


def test_the_demo_ends_with_a_command_that_opens_what_it_made(checkout):
    made = dry_run(checkout, ("demo.sh", [], {}))
    index = next(words for words in commands(made) if "xmodal_jax.retrieval" in words)[4]
    said = re.findall(
        r"^say .*(\.venv/bin/python -m .*)\"$", (LAUNCH / "demo.sh").read_text(), re.M
    )
    program, *words = shlex.split(said[0].partition(" -m ")[2])
    parser = importlib.import_module(program_of(program))._parser()
    assert parser.parse_args(words).index == Path(index)
    assert "install.sh serve" in made


CALLED = """echo apt-get "$@" >>"$HOME/called"; echo Unpacking; exit $APT"""


@pytest.fixture
def bare(checkout):
    """A machine with few programs: no browser, and an apt-get that writes down what it is told."""
    programs = checkout / "programs"
    programs.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "env", "mkdir"):
        (programs / name).symlink_to(shutil.which(name))
    script(programs / "apt-get", CALLED)
    script(programs / "id", "echo $ID")
    script(programs / "python3", "exit 0")
    python = checkout / "code" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, "exit 0")
    return checkout


def installed(bare, **settings):
    """What was said, and what apt-get was told."""
    called = bare / "home" / "called"
    called.unlink(missing_ok=True)
    for stamp in (bare / "code" / ".venv").glob("installed-*"):
        stamp.unlink()
    path = str(bare / "programs")
    found = launch(bare, "install.sh", ["test"], **{"PATH": path, "ID": "0", "APT": "0"} | settings)
    assert found.returncode == 0, found.stderr
    return found, called.read_text().splitlines() if called.exists() else []


def test_a_browser_is_installed_where_that_can_be_done(bare):
    found, called = installed(bare)
    assert called[-1].endswith(" chromium chromium-driver") and " install " in called[-1]
    assert found.stdout == "" and "note" not in found.stderr
    # Where it fails the rest is installed all the same.
    found, called = installed(bare, APT="100")
    assert len(called) == 2 and "note: Chromium can't be installed here" in found.stderr
    dry, called = installed(bare, DRY_RUN="1")
    assert not called and "apt-get -qq install" in dry.stdout
    # By others than root, or where there is one, nothing is.
    assert not installed(bare, ID="1000")[1]
    script(bare / "programs" / "chromedriver", "exit 0")
    assert not installed(bare)[1]
