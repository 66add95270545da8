"""README and the pages of docs/ agree with the code, the Makefile and each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from reprogpt.cli.parser import COMMANDS
from tests.end_to_end.workspace import documented

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
PARAMS = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
FENCE = re.compile(r"^ *```.*?^ *```$", flags=re.MULTILINE | re.DOTALL)


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub and MkDocs give to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(path)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_read_in_five_minutes():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 250


def test_the_parameter_table_has_every_key_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text_of(ROOT / "docs/parameters.md"), flags=re.MULTILINE)
    table = {key: value.strip("` ") for key, value in rows}
    assert list(table) == list(PARAMS)
    for key, value in PARAMS.items():
        if key == "corpus_url":
            assert table[key] == "The Verdict"
        elif key == "corpus_sha256":
            assert value.startswith(table[key].rstrip("…"))
        else:
            assert YAML(typ="safe", pure=True).load(table[key]) == value, key


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([\w-]+):.*##", text_of(ROOT / "Makefile"), flags=re.MULTILINE))
    text = "\n".join(text_of(path) for path in ALL)
    named = set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, flags=re.MULTILINE))
    assert named and named <= targets


def test_every_make_target_is_documented():
    targets = set(re.findall(r"^([\w-]+):.*##", text_of(ROOT / "Makefile"), flags=re.MULTILINE))
    text = "\n".join(text_of(path) for path in ALL)
    assert [target for target in sorted(targets) if f"make {target}" not in text] == []


def test_the_commands_that_end_to_end_tests_take_from_the_docs_are_there_once():
    """Also those of the slow tests, which an edit of a page would break unseen."""
    sources = "\n".join(map(text_of, (ROOT / "tests/end_to_end").glob("test_*.py")))
    commands = re.findall(r'\bdocumented\("([^"]+)"\)', sources)
    assert len(commands) >= 3
    for command in commands:
        assert documented(command).startswith(command)


def test_the_drawing_of_the_pipeline_is_dvcs():
    done = subprocess.run([sys.executable, "-m", "dvc", "dag"], cwd=ROOT, capture_output=True, text=True, check=True)
    drawn = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
    assert f"\n```text\n{drawn}\n```\n" in text_of(ROOT / "README.md")


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(path: Path):
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", FENCE.sub("", text_of(path))):
        target, _, anchor = link.partition("#")
        to = (path.parent / target).resolve() if target else path
        assert to.is_relative_to(ROOT) and to.exists(), link
        assert not anchor or anchor in anchors_of(to), link


def test_every_page_is_in_the_sites_navigation_and_linked_from_the_readme():
    nav = text_of(ROOT / "mkdocs.yml").partition("\nnav:\n")[2]
    assert sorted(re.findall(r": ([\w-]+\.md)", nav)) == sorted(["index.md", *(path.name for path in PAGES)])
    readme = text_of(ROOT / "README.md")
    assert [path.name for path in PAGES if f"](docs/{path.name})" not in readme] == []


def test_every_picture_is_shown():
    text = "\n".join(text_of(path) for path in ALL)
    assert [path.name for path in (ROOT / "docs/images").iterdir() if f"images/{path.name}" not in text] == []


def test_every_command_has_an_example_and_a_line_in_the_readme():
    """An example is at the start of a line: end_to_end/test_repro.py runs those."""
    text = "\n".join(text_of(path) for path in ALL)
    shown = {match[1] for match in re.finditer(r"^python -m reprogpt (\w+)", text, flags=re.MULTILINE)}
    section = text_of(ROOT / "README.md").split("\n## Commands\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [a-z].*\|$", section, flags=re.MULTILINE)
    assert shown == set(rows) == {command.name for command in COMMANDS}


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("repro", ["python -m reprogpt check", "dvc repro"]),
        ("test", ["python -m pytest"]),
        ("ui", ["mlflow ui"]),
        ("demo", ["python -m tools.demo"]),
        ("docs", ["mkdocs build --strict"]),
    ],
)
def test_make_does_what_is_said_of_it(target: str, commands: list[str]):
    """Without doing it: set-up first, then the commands in this order."""
    done = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = ["tools/install.py", *commands]
    places = [done.stdout.find(command) for command in expected]
    assert -1 not in places and places == sorted(places), done.stdout


def test_the_site_builds_and_asks_no_other_host(tmp_path: Path):
    """As `make docs` does, into another folder."""
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES) + 1
    loaded = r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="https?:'
    assert [page.name for page in pages if re.search(loaded, text_of(page))] == []
    assert "Resume from the latest checkpoint" in text_of(tmp_path / "search/search_index.json")
