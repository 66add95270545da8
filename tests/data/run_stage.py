"""Runs a corpus stage as DVC runs it, in the current folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DVC_YAML = """\
stages:
  fetch:
    params: [corpus_url, corpus_sha256, offline_corpus, max_corpus_bytes]
  split:
    params: [train_ratio]
  tokenize:
    params: [encoding]
"""


def write_pipeline(**params: Any) -> None:
    """Write params.yaml, and a dvc.yaml that knows the keys of these stages."""
    Path("params.yaml").write_text(json.dumps(params), "utf-8")
    Path("dvc.yaml").write_text(DVC_YAML, "utf-8")


def run_stage(stage: str) -> subprocess.CompletedProcess[str]:
    """Run a stage to its end; output is captured, a failure is not an exception."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", f"stages.{stage}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
