"""Where the corpus's host can't be reached, the bundled text is used, with warnings."""

from reprogpt.data.fetch import DEFAULT_TEXT_SHA256
from tests.end_to_end.workspace import Workspace


def test_the_fallback_is_announced_by_fetch_by_train_and_in_mlflow(workspace: Workspace) -> None:
    workspace.set_params(corpus_url="http://127.0.0.1:9/corpus.txt", corpus_sha256=DEFAULT_TEXT_SHA256, n_epochs=1)
    output = workspace.succeed("dvc", "repro", "train")
    fetch, train = output.split("WARNING: this trains on the bundled text")
    assert "WARNING: ANOTHER TEXT IS USED" in fetch
    assert "data/offline/an-error-of-the-press.txt" in train
    assert "dvc repro -f fetch" in train
    (run,) = workspace.runs()
    assert run.data.tags["corpus.path"] == "data/offline/an-error-of-the-press.txt"
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {
        "an-error-of-the-press-train",
        "an-error-of-the-press-val",
    }


def test_without_a_fallback_it_is_an_error_that_names_the_remedy(workspace: Workspace) -> None:
    workspace.set_params(offline_corpus='""')
    done = workspace.run("python", "-m", "stages.fetch")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "can't be reached" in done.stderr and "offline_corpus" in done.stderr
