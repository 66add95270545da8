"""Stages that a team adds to dvc.yaml, in the forms that DVC's documentation shows. DVC itself runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprogpt.cli.lineage import stage_lines
from reprogpt.dvc.revisions import Workspace
from reprogpt.params.loader import unknown_keys
from reprogpt.runs.lineage import check_links

PIPELINE = """\
vars: [more.yaml, {inline: {deep: 1}}]
stages:
  report:
    cmd: echo ${title} ${inline.deep} ${other} > report.txt
    params: [seed, report.title, {report.yaml: [title, a.b]}, {whole.yaml: }, {params.yaml: [nested.deep.key]}]
    deps: [in.txt]
    outs: [report.txt]
  translate:
    foreach: ${langs}
    do:
      cmd: echo ${item} > each-${item}.txt
      params: [nested.deep.key]
      outs: ["each-${item}.txt"]
  grid:
    matrix: {size: [1, 2], lang: "${langs}"}
    cmd: echo ${item.size} > grid-${item.size}-${item.lang}.txt
    outs: ["grid-${item.size}-${item.lang}.txt"]
  below:
    wdir: sub
    cmd: [echo two commands, cat data.txt > out.txt]
    params: [width]
    deps: [data.txt]
    outs: [out.txt]
  outless:
    cmd: echo nothing made
    deps: [in.txt]
"""
FILES = {
    "dvc.yaml": PIPELINE,
    "params.yaml": "seed: 1\ntitle: hello\nreport: {title: t}\nlangs: [en, de]\nnested: {deep: {key: 1}}\n",
    "more.yaml": "other: 3\n",
    "report.yaml": "title: x\na: {b: 2}\n",
    "whole.yaml": "k: 1\n",
    "in.txt": "text\n",
    "sub/params.yaml": "width: 3\n",
    "sub/data.txt": "data\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: PIPELINE, run once."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text, "utf-8")
    env = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run(["git", "init", "-q"], check=True)
    for command in ("init", "repro"):
        subprocess.run([sys.executable, "-m", "dvc", command, "-q"], env=env, check=True, capture_output=True)
    return tmp_path


def lines_of_stages() -> dict[str, list[str]]:
    """Stage -> what lineage prints of it, without digests."""
    here = Workspace()
    links = check_links(here.lock, here.stages, here.params, here.digest)
    return {stage.stage: [" ".join(line.split()[:3]) for line in stage_lines(stage)] for stage in links}


def test_every_documented_form_is_read(folder: Path) -> None:
    assert unknown_keys(Workspace().params | {"peak_rl": 1}) == ["peak_rl: unknown key; no stage in dvc.yaml reads it"]
    lines = lines_of_stages()
    assert list(lines) == [
        *("report", "translate@en", "translate@de"),
        *("grid@1-en", "grid@1-de", "grid@2-en", "grid@2-de", "below", "outless"),
    ]
    assert all(line.startswith(("holds", "not here param")) for stage in lines.values() for line in stage), lines
    assert Workspace().recorded_outs.keys() >= {"report.txt", "each-en.txt", "grid-2-de.txt", "sub/out.txt"}


@pytest.mark.parametrize(
    ("path", "stage", "line"),
    [
        ("in.txt", "outless", "DIFFERS dep in.txt"),
        ("each-de.txt", "translate@de", "DIFFERS each-de.txt "),
        ("sub/data.txt", "below", "DIFFERS dep sub/data.txt"),
        ("params.yaml", "translate@en", "DIFFERS param nested.deep.key"),
    ],
)
def test_a_change_is_seen_in_the_stage_that_it_concerns(folder: Path, path: str, stage: str, line: str) -> None:
    text = Path(path).read_text("utf-8")
    Path(path).write_text(text.replace("key: 1", "key: 2") if "key: 1" in text else "other\n", "utf-8")
    assert any(found.startswith(line) for found in lines_of_stages()[stage])


def test_a_stage_that_reads_all_of_params_yaml_knows_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("stages: {all: {cmd: x, params: [{params.yaml: }]}}", "utf-8")
    assert unknown_keys({"anything": 1}) == []


def test_a_file_that_dvc_records_without_a_digest_is_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("stages: {get: {cmd: 'x ${a}', deps: [https://host/a], outs: [a]}}", "utf-8")
    Path("params.yaml").write_text("a: 1", "utf-8")
    Path("dvc.lock").write_text(
        "schema: '2.0'\nstages: {get: {cmd: x, deps: [{path: 'https://host/a', etag: e}], outs: [{path: a, md5: m}]}}"
    )
    assert Workspace().recorded_outs == {"a": "m"}
    assert lines_of_stages() == {"get": ["not here a"]}
