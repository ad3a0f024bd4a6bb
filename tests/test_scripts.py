"""Scripts parse, CI runs what README says, and README names nothing that is not there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", [*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])
def test_scripts_parse_and_say_how_to_use_them(path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ") and "set -euo pipefail" in text
    assert "# usage: bash " in text or path.name == "run"


def test_ci_runs_readmes_test_command():
    assert "    bash launch/test.sh\n" in README
    assert "bash launch/test.sh" in (ROOT / ".ci" / "run").read_text()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def commands():
    joined = README.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if re.match(r" {4}(python|bash) ", line)]


def test_readme_has_the_commands_and_every_heading_once():
    assert len(commands()) >= 8
    headings = [line for line in README.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings)) > 10


@pytest.mark.parametrize("command", commands())
def test_files_and_modules_of_readme_exist(command):
    words = shlex.split(command, comments=True)
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    module = ROOT / words[2].replace(".", "/")
    assert words[1] == "-m"
    assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    for word in words[3:]:
        if word.startswith("--config="):
            path = word.split("=")[1].split(":")[0]
            assert (ROOT / path).is_file()


def test_configuration_fields_of_readme_exist():
    from configs import coco

    fields = set(re.findall(r"--config\.([a-z_.]+)=", README))
    known = [flatten_dict(coco.get_config(v).to_dict(), sep=".") for v in ("teran", "cmsei")]
    assert fields and not fields - known[0].keys() - known[1].keys()
