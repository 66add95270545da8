"""What the README says of parameters and commands is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from reprogpt.cli.parser import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PARAMS = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")


def test_the_table_has_every_parameter_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, flags=re.MULTILINE))
    table = {key: value.strip("` ") for key, value in rows.items() if key in PARAMS}
    assert list(table) == list(PARAMS)
    for key, value in PARAMS.items():
        if key == "corpus_url":
            assert table[key] == "The Verdict"
        elif key == "corpus_sha256":
            assert value.startswith(table[key].rstrip("…"))
        else:
            assert YAML(typ="safe", pure=True).load(table[key]) == value, key


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, flags=re.MULTILINE))
    assert named and named <= targets


def test_the_drawing_of_the_pipeline_is_dvcs():
    done = subprocess.run([sys.executable, "-m", "dvc", "dag"], cwd=ROOT, capture_output=True, text=True, check=True)
    drawn = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
    assert f"\n```text\n{drawn}\n```\n" in README


def test_every_file_linked_exists():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_command_has_an_example():
    """At the start of a line: end_to_end/test_repro.py runs those. And a row that says its exit codes."""
    shown = {match[1] for match in re.finditer(r"^python -m reprogpt (\w+)", README, flags=re.MULTILINE)}
    section = README.split("\n## Commands\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| 0.*\|$", section, flags=re.MULTILINE)
    assert shown == set(rows) == {command.name for command in COMMANDS}


@pytest.mark.parametrize(
    ("target", "commands"),
    [("repro", ["python -m reprogpt check", "dvc repro"]), ("test", ["python -m pytest"]), ("ui", ["mlflow ui"])],
)
def test_make_does_what_is_said_of_it(target: str, commands: list[str]):
    """Without doing it: set-up first, then the commands in this order."""
    done = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = ["-m venv .venv", "--requirement requirements.lock", "--editable .", *commands]
    slots = [done.stdout.find(command) for command in expected]
    assert -1 not in slots and slots == sorted(slots), done.stdout
