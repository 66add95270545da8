"""`dvc repro` on a fresh clone: what a user gets, and what a second one does. Tests run in their order."""

import csv
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from transformers import GPT2LMHeadModel

from reprogpt.dvc.digest import dvc_md5
from reprogpt.model.gpt2_format import load_model
from tests.end_to_end.remotes import KEY_ID, SECRET, clone_of, remote
from tests.end_to_end.workspace import DOCS, STEPS, Workspace, points_drawn

ARTIFACTS = {
    "params.yaml",
    "samples/samples.txt",
    "samples/training.txt",
    *(f"plots/{name}.{kind}" for name in ("learning_rate", "losses", "gradients") for kind in ("png", "pdf")),
}
EXAMPLES = [line.partition("#")[0].strip() for line in DOCS.splitlines() if line.startswith("python -m reprogpt ")]
ONE_OF_EACH = {line.split()[3]: line for line in EXAMPLES}.values()  # command -> its last example
FINAL = {"final_train_loss", "final_val_loss", "val_perplexity", "val_bits_per_byte", "val_accuracy"}


def test_one_finished_run_has_every_step_result_and_artifact(finished: Workspace) -> None:
    (run,) = finished.runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"repro-{run.data.tags['run_key'][:8]}"
    for key in ("loss", "lr", "max_grad", "max_grad_clipped", "grad_norm"):
        points = finished.client().get_metric_history(run.info.run_id, key)
        assert [point.step for point in points] == list(range(STEPS)), key
    for key in ("train_loss", "val_loss"):
        points = finished.client().get_metric_history(run.info.run_id, key)
        assert [point.step for point in points] == [0, 5, 10, 15], key
    assert set(run.data.metrics) >= FINAL
    assert run.data.metrics["best_val_loss"] == json.loads(finished.files()["data/metrics/train.json"])["best_val_loss"]
    assert finished.artifacts(run) == ARTIFACTS


def test_the_runs_mlflow_model_has_the_only_other_copy_of_the_model(finished: Workspace) -> None:
    (run,) = finished.runs()
    checkpoint = finished.model_folder(run) / "checkpoint"
    made = finished.path / "data/model"
    assert dvc_md5(checkpoint) == dvc_md5(made)
    stored = (finished.path / "mlruns").rglob("*")
    size = (made / "model.safetensors").stat().st_size
    assert [path for path in stored if path.stat().st_size >= size] == [checkpoint / "model.safetensors"]


def test_the_run_has_every_parameter_of_train_and_evaluate(finished: Workspace) -> None:
    (run,) = finished.runs()
    locked = finished.lock()
    recorded = {**locked["train"]["params"]["params.yaml"], **locked["evaluate"]["params"]["params.yaml"]}
    assert run.data.params == {key: str(value) for key, value in recorded.items()}


def test_the_run_names_its_digests_as_dvc_does(finished: Workspace) -> None:
    (run,) = finished.runs()
    digests = finished.out_digests()
    for out in ("data/model", "data/metrics/history.csv", "data/metrics/evaluations.csv", "data/metrics/train.json"):
        assert run.data.tags[f"dvc.{out}.md5"] == digests[out]
    named = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert named == {
        "corpus-train": digests["data/tokens/train.npy"],
        "corpus-val": digests["data/tokens/val.npy"],
    }
    assert run.data.tags["dirty"] == "false"
    assert run.data.tags["commit"] == finished.succeed("git", "rev-parse", "HEAD").strip()


def test_history_csv_holds_what_mlflow_holds(finished: Workspace) -> None:
    (run,) = finished.runs()
    with (finished.path / "data/metrics/history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for key in ("loss", "lr", "max_grad"):
        points = finished.client().get_metric_history(run.info.run_id, key)
        assert [point.value for point in points] == [float(row[key]) for row in rows]


def test_transformers_loads_the_model_with_our_logits(finished: Workspace) -> None:
    folder = finished.path / "data/model"
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = torch.arange(0, 50000, 1000).view(1, 50)
    with torch.no_grad():
        assert (theirs(ids).logits - load_model(folder)(ids)).abs().max() < 1e-4


def test_a_second_repro_runs_nothing(finished: Workspace) -> None:
    output = finished.succeed("dvc", "repro")
    assert finished.stages_run(output) == []
    assert len(finished.runs()) == 1


def test_force_gives_the_same_lock_file_and_a_second_complete_run(finished: Workspace) -> None:
    before = (finished.path / "dvc.lock").read_bytes()
    finished.succeed("dvc", "repro", "--force")
    assert (finished.path / "dvc.lock").read_bytes() == before
    first, second = finished.runs()
    assert first.data.tags["weights.sha256"] == second.data.tags["weights.sha256"]
    assert finished.artifacts(second) == ARTIFACTS
    assert dvc_md5(finished.model_folder(second) / "checkpoint") == second.data.tags["dvc.data/model.md5"]
    assert set(second.data.metrics) >= FINAL


@pytest.mark.slow
def test_training_again_alone_still_gives_a_complete_run(finished: Workspace) -> None:
    """DVC then skips evaluate and plot, whose inputs are the same bits."""
    output = finished.succeed("dvc", "repro", "--force", "--single-item", "train")
    assert finished.stages_run(output) == ["train"]
    run = finished.runs()[-1]
    assert finished.artifacts(run) == ARTIFACTS
    assert set(run.data.metrics) >= FINAL


def test_other_sampling_keys_evaluate_in_a_child_run(finished: Workspace) -> None:
    parent = finished.runs()[-1]
    finished.set_params(temperature=0.5)
    output = finished.succeed("dvc", "repro")
    assert finished.stages_run(output) == ["evaluate"]
    child = finished.runs()[-1]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["temperature"] == "0.5"
    assert child.info.status == "FINISHED"
    assert set(child.data.metrics) == FINAL
    finished.set_params(temperature=1.0)
    finished.succeed("dvc", "repro")


def test_a_changed_rate_reruns_train_evaluate_and_plot(finished: Workspace) -> None:
    finished.set_params(peak_lr=0.002)
    assert finished.stages_run(finished.succeed("dvc", "repro")) == ["train", "evaluate", "plot"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peak_lr": "fast"}, "peak_lr: 'fast' is not allowed; allowed: a number above 0"),
        pytest.param({"vocab_size": 300}, "vocab_size=300 allows 0 to 299", marks=pytest.mark.slow),
        pytest.param({"context_length": 5000}, "needs at least 5001", marks=pytest.mark.slow),
        pytest.param({"device": "mps"}, "device: mps is not available on this machine", marks=pytest.mark.slow),
        pytest.param({"train_ratio": 1.0}, "train_ratio: 1.0 is not allowed", marks=pytest.mark.slow),
        pytest.param({"corpus_url": "ftp://host/text"}, "allowed: an https, http or file URL", marks=pytest.mark.slow),
    ],
)
def test_a_refused_value_loses_nothing(finished: Workspace, values: dict[str, Any], message: str) -> None:
    """Nor does it train: with the value restored, every out is restored byte for byte."""
    params = finished.path / "params.yaml"
    before, params_before, num_runs = finished.files(), params.read_bytes(), len(finished.runs())
    finished.set_params(**values)
    failed = finished.run("dvc", "repro")
    assert failed.returncode != 0
    assert message in failed.stderr
    assert "restores every output without training" in failed.stderr
    assert "Traceback" not in failed.stderr
    params.write_bytes(params_before)
    output = finished.succeed("dvc", "repro")
    assert finished.stages_run(output) == []
    assert finished.files() == before
    assert finished.succeed("dvc", "status").strip() == "Data and pipelines are up to date."
    assert len(finished.runs()) == num_runs


def test_metrics_and_plots_are_declared(finished: Workspace) -> None:
    shown = json.loads(finished.succeed("dvc", "metrics", "show", "--json"))
    assert set(shown[""]["data"]) == {f"data/metrics/{name}.json" for name in ("tokens", "train", "eval")}
    assert "file://" in finished.succeed("dvc", "plots", "show")
    shown = finished.succeed("dvc", "plots", "show", "--json")
    drawn = [point for plot in ("loss", "lr", "gradients", "grad_norm") for point in points_drawn(shown, plot)]
    columns = {"loss", "train_loss", "val_loss", "lr", "max_grad", "max_grad_clipped", "grad_norm"}
    assert {point["column"] for point in drawn} == columns
    assert all(point["value"] for point in drawn)  # an empty one is drawn as 0


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_clone_elsewhere_pulls_the_results_and_runs_nothing(finished: Workspace, kind: str, tmp_path: Path) -> None:
    with remote(kind, tmp_path, finished):
        finished.commit(f"result, and a remote of kind {kind}")
        lock = (finished.path / "dvc.lock").read_bytes()
        finished.succeed("dvc", "push")
        there = clone_of(finished, tmp_path / "there")
        assert "data/model" in there.succeed("dvc", "status")
        there.succeed("dvc", "pull")
        assert there.files() == finished.files()
        output = there.succeed("dvc", "repro")
        assert there.stages_run(output) == [] and output.count("didn't change, skipping") == 6
        assert there.succeed("dvc", "status", "--cloud").strip() == "Cache and remote 'storage' are in sync."
    assert there.succeed("dvc", "status").strip() == "Data and pipelines are up to date."
    assert there.succeed("git", "status", "--porcelain") == ""
    assert (there.path / "dvc.lock").read_bytes() == lock
    assert not (there.path / "mlflow.db").exists() and not (there.path / ".reprogpt").exists()  # no stage began
    for clone in (finished, there):
        assert clone.run("git", "grep", "-F", "-e", KEY_ID, "-e", SECRET).returncode == 1  # in no file that git tracks


@pytest.mark.slow
def test_another_project_gets_the_model_by_name(finished: Workspace, tmp_path: Path) -> None:
    """From the remote: a file:// address hides the cache that lies beside it."""
    here = Workspace(tmp_path, tmp_path)
    with remote("local", tmp_path, finished):
        finished.commit("a remote")
        finished.succeed("dvc", "push")
        identity = ("-c", "user.name=t", "-c", "user.email=t@t.invalid")
        finished.succeed("git", *identity, "tag", "-a", "gpt@v1.0.0", "-m", "first")
        here.succeed("dvc", "artifacts", "get", finished.path.as_uri(), "gpt", "-o", "named")
        here.succeed("dvc", "get", finished.path.as_uri(), "data/model", "-o", "by-path")
    for folder in (tmp_path / "named", tmp_path / "by-path"):
        assert dvc_md5(folder) == finished.out_digests()["data/model"]


@pytest.fixture(scope="module")
def as_documented(finished: Workspace) -> Workspace:
    """The clone with runs of two rates, by the names that the pages give them, and the file that it reads."""
    runs = [run for run in finished.runs() if "mlflow.parentRunId" not in run.data.tags]
    assert runs[0].data.params["peak_lr"] != runs[-1].data.params["peak_lr"]
    for run, name in ((runs[0], "book"), (runs[-1], "corrected")):
        finished.client().update_run(run.info.run_id, name=name)
    (finished.path / "prompt.txt").write_text("It was then that\n", "utf-8")
    return finished


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=() if line in ONE_OF_EACH else pytest.mark.slow) for line in EXAMPLES]
)
def test_an_example_of_the_documentation_does_what_it_says(as_documented: Workspace, line: str) -> None:
    """Of two different runs, compare's answer is no, and decide's that a pair does not decide."""
    before = as_documented.files()
    done = as_documented.run("bash", "-o", "pipefail", "-c", line)
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if " compare " in line or " decide " in line else 0), done.stderr
    assert done.stdout.strip()
    assert as_documented.files() == before


def test_greedy_text_is_the_greedy_sample(finished: Workspace) -> None:
    text = finished.run("python", "-m", "reprogpt", "generate", "--temperature", "0").stdout
    assert (finished.path / "data/samples.txt").read_text("utf-8").startswith(f"greedy\n{text}\ntemperature ")


@contextmanager
def served(workspace: Workspace, model: str, folder: Path) -> Iterator[str]:
    """The address of a real `mlflow models serve` of the model, started in another folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--port", str(port)]
    env = workspace.env | {"MLFLOW_TRACKING_URI": f"sqlite:///{workspace.path / 'mlflow.db'}"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            try:
                requests.get(f"{address}/ping", timeout=60).raise_for_status()
                break
            except requests.RequestException:
                assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_served_model_answers_as_generate_does(finished: Workspace, tmp_path: Path) -> None:
    run = [run for run in finished.runs() if "mlflow.parentRunId" not in run.data.tags][-1]
    id_in_the_store = finished.model_folder(run).parent.name
    with served(finished, f"models:/{id_in_the_store}", tmp_path) as address:

        def answer(**asked: Any) -> requests.Response:
            return requests.post(f"{address}/invocations", json=asked, timeout=120)

        greedy = answer(inputs=["Every effort moves you"], params={"temperature": 0})
        drawn = answer(inputs=["He laughed", "She wept"], params={"seed": 7, "top_k": 50, "max_new_tokens": 12})
        refused = answer(inputs=["He laughed"], params={"temperature": -1})
        without_text = answer(inputs=["He laughed", None])
        without_value = answer(inputs=["He laughed"], params={"max_new_tokens": None})
        given = json.loads((finished.model_folder(run) / "serving_input_example.json").read_text("utf-8"))
        assert answer(**given).status_code == 200
    (text,) = greedy.json()["predictions"]
    assert (finished.path / "data/samples.txt").read_text("utf-8").startswith(f"greedy\n{text['text']}\n\ntemperature ")
    for prompt, row in zip(("He laughed", "She wept"), drawn.json()["predictions"], strict=True):
        options = ["--seed", "7", "--top-k", "50", "--length", "12", "--run", run.info.run_id]
        generated = finished.run("python", "-m", "reprogpt", "generate", prompt, *options)
        assert generated.stdout == f"{row['text']}\n", generated.stderr
    assert refused.status_code == 400
    assert "temperature is -1.0, but must be 0 or a number from 0.001 to 1000" in refused.json()["message"]
    for response, words in ((without_text, "prompt 2 of 2 is null"), (without_value, "max_new_tokens is null")):
        assert response.status_code == 400 and words in response.json()["message"]
        assert "Traceback" not in response.text and str(finished.path) not in response.text


@pytest.mark.slow
def test_an_edited_figure_redraws_and_another_ratio_reruns_all_but_fetch(finished: Workspace) -> None:
    figures = finished.path / "src/reprogpt/plotting/training_figures.py"
    figures.write_text(figures.read_text("utf-8") + "# edited\n", "utf-8")
    assert finished.stages_run(finished.succeed("dvc", "repro")) == ["plot"]
    finished.set_params(train_ratio=0.8)
    expected = ["split", "tokenize", "train", "evaluate", "plot"]
    assert finished.stages_run(finished.succeed("dvc", "repro")) == expected
