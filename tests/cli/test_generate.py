"""reprogpt generate: text as it is generated, from the chosen model, and a clean exit whatever happens."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.models import Model

from reprogpt.cli import generate as command
from reprogpt.cli.generate import pieces
from reprogpt.cli.main import run
from reprogpt.data.tokens import decode, load_encoding
from reprogpt.errors import PipelineError
from reprogpt.evaluation.samples import sample_text
from reprogpt.model import generate as generation
from reprogpt.model.gpt2_format import load_model, save_model
from reprogpt.numerics.device import set_up_numerics
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.loader import load_params
from reprogpt.tracking.store.client import open_store
from reprogpt.tracking.store.models import finalize_model, upload_model_file
from tests.tiny import model_with_odds, tiny_model

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--length", "12")
Generate = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def matmul_precision_restored() -> Iterator[None]:
    backend: Any = torch.backends.mkldnn
    before = backend.matmul.fp32_precision
    yield
    backend.matmul.fp32_precision = before


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository's root after a training: an untrained model says anything."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    for seed, name in enumerate(("model", "other")):
        save_model(folder / "data" / name, tiny_model(seed, vocab_size=50257, context_length=32))
    save_model(folder / "data/small", tiny_model())
    return folder


@pytest.fixture(scope="module")
def recorded(root: Path) -> dict[str, Run]:
    """A training with data/other in its model, an evaluation of it, and a training that was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        client, experiment = open_store()
        trained = client.create_run(experiment, run_name="trained")
        for path in (root / "data/other").iterdir():
            upload_model_file(client, trained.info.run_id, path, "checkpoint")
        finalize_model(client, trained.info.run_id, Model().to_dict())
        tags = {"mlflow.parentRunId": trained.info.run_id}
        evaluated = client.create_run(experiment, run_name="evaluated", tags=tags)
        killed = client.create_run(experiment, run_name="killed")
        upload_model_file(client, killed.info.run_id, root / "data/other/config.json", "checkpoint")
        return {"trained": trained, "evaluated": evaluated, "killed": killed}


@pytest.fixture
def generate(root: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Generate:
    """Run `reprogpt generate ...` in the folder: the text without its last newline, and standard error."""
    monkeypatch.chdir(root)

    def act(*arguments: str, stdin: bytes = b"") -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["reprogpt", "generate", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        assert run() == 0
        out, err = capsysbinary.readouterr()
        text = out.decode()
        assert text.endswith("\n")
        return text[:-1], err.decode()

    return act


def test_weights_that_are_not_of_the_last_step_are_announced(root: Path, generate: Generate) -> None:
    config = root / "data/model/config.json"
    before = config.read_text("utf-8")
    try:
        config.write_text(before.replace("{", '{"best_step": 50, ', 1), "utf-8")
        text, err = generate(*SHORT)
        assert "weights of step 50, the evaluation with the lowest val_loss (keep: best)\n" in err
    finally:
        config.write_text(before, "utf-8")
    assert generate(*SHORT)[0] == text
    assert "weights of step" not in generate(*SHORT)[1]


@pytest.fixture
def ending(root: Path) -> Iterator[Path]:
    """As data/model, a model of documents that wants to end at once: <|endoftext|> is its likeliest token."""
    folder, kept = root / "data/model", root / "data/kept"
    folder.rename(kept)
    odds = model_with_odds({50256: 9.0, 64: 1.0}, vocab_size=50257, context_length=32)
    save_model(folder, odds, on_documents=True)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


def test_a_model_of_documents_ends_its_text_and_may_start_one(
    ending: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate("A", *SHORT, "--temperature", "0")[0] == "A"
    assert set(generate("", "--from-start", "--length", "99", "--seed", "2")[0]) <= {"a"}
    params = load_params(EvaluateParams)
    on = params.model_copy(update={"stop_at_end_of_text": False})
    monkeypatch.setattr(command, "load_params", lambda _: on)
    assert generate("A", "--length", "2", "--temperature", "0")[0] == "A<|endoftext|><|endoftext|>"


def test_from_start_gives_the_model_the_end_of_the_document_before(
    ending: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = []
    real = generation.generate

    def watched(model: Any, prompt: list[int], *arguments: Any, **options: Any) -> Iterator[int]:
        prompts.append(prompt)
        return real(model, prompt, *arguments, **options)

    monkeypatch.setattr(generation, "generate", watched)
    generate("", "--from-start", *SHORT)
    generate("A", "--from-start", *SHORT)
    assert prompts == [[50256], [50256, 32]]


def test_a_model_of_a_single_text_never_stops_and_starts_no_document(root: Path, generate: Generate) -> None:
    folder, kept = root / "data/model", root / "data/kept"
    folder.rename(kept)
    try:
        save_model(folder, model_with_odds({50256: 1.0}, vocab_size=50257, context_length=32))
        assert generate("A", "--length", "2")[0] == "A<|endoftext|><|endoftext|>"
        with pytest.raises(PipelineError, match="--from-start needs a model that was trained on several documents"):
            generate("A", "--from-start")
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)


def usual_environment() -> dict[str, str]:
    """For a real program: output is buffered, as it is where nobody has set otherwise."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return kept | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def start(root: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start the real program; SIGINT as on a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "reprogpt", "generate", *arguments],
        cwd=root,
        env=usual_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_greedy_is_the_greedy_sample_of_evaluate(root: Path, generate: Generate) -> None:
    text, messages = generate("--temperature", "0")
    params = load_params(EvaluateParams)
    numerics = set_up_numerics(**params.arithmetic())
    samples = sample_text(load_model(root / "data/model"), load_encoding("gpt2"), params=params, numerics=numerics)
    assert samples.startswith(f"greedy\n{text}\n\ntemperature ")
    assert text.startswith("Every effort moves you") and len(text) > 50
    assert messages == ""
    assert generate("Every effort moves you", "--top-k", "1")[0] == text


def test_the_seed_decides_the_text(generate: Generate) -> None:
    texts = [generate("A", *SHORT, "--seed", seed)[0] for seed in ("7", "7", "8")]
    assert texts[0] == texts[1] != texts[2]
    assert generate("A", *SHORT)[0] == generate("A", *SHORT, "--seed", "123", "--top-k", "25", "--temperature", "1")[0]


def test_options_override_params(generate: Generate) -> None:
    texts = {generate("A", *SHORT, *more)[0] for more in ((), ("--top-k", "50257"), ("--temperature", "0.001"))}
    assert len(texts) == 3
    one, two = (generate("A", "--length", length, "--temperature", "0")[0] for length in ("1", "2"))
    assert two.startswith(one) and one != two


def test_standard_input_is_the_prompt_without_one_newline(generate: Generate) -> None:
    wanted = generate("Gr\u00fc\u00dfe,\n", *SHORT)[0]
    assert wanted.startswith("Gr\u00fc\u00dfe,\n")
    assert generate("-", *SHORT, stdin="Gr\u00fc\u00dfe,\n\n".encode())[0] == wanted
    assert generate(*SHORT, "--", "-5 degrees")[0].startswith("-5 degrees")


def test_a_character_is_written_with_its_last_token_and_never_in_halves() -> None:
    encoding = load_encoding("gpt2")
    text = "caf\u00e9 \u65e5\u672c\u8a9e \U0001f642\U0001f680 end"
    ids = encoding.encode_ordinary(text)
    assert "\ufffd" in decode(encoding, ids[:-3])  # or nothing is split here
    taken: list[int] = []
    written = ""
    for piece in pieces(encoding, (taken.append(token) or token for token in ids)):
        written += piece
        whole = decode(encoding, taken)
        assert text.startswith(written) and whole.startswith(written)
        assert "\ufffd" not in piece
    assert written == text


def test_bytes_that_no_token_completes_are_replaced_as_in_a_sample() -> None:
    encoding = load_encoding("gpt2")
    drawn = torch.randint(0, 50300, (5000,), generator=torch.Generator().manual_seed(0)).tolist()
    for ids in (drawn, encoding.encode_ordinary("\U0001f642")[:1], [50300, 65]):
        assert "".join(pieces(encoding, ids)) == decode(encoding, ids)
        assert "\ufffd" in decode(encoding, ids)


def test_each_token_is_written_before_the_next_one_is_made(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []

    def fake(*_: object, **__: object) -> Iterator[int]:
        for token in (32, 33):
            events.append(token)
            yield token

    buffer = SimpleNamespace(write=events.append, flush=lambda: events.append("flush"))
    monkeypatch.setattr(generation, "generate", fake)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=buffer, flush=lambda: None))
    monkeypatch.setattr(sys, "argv", ["reprogpt", "generate", "One"])
    assert run() == 0
    assert events == [b"One", "flush", 32, b"A", "flush", 33, b"B", "flush", b"\n", "flush"]


def test_the_reader_may_close_the_pipe_early(root: Path) -> None:
    """The text is far longer than could be made: what arrives does so before the last token."""
    process = start(root, "Once", "--length", "100000000")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(40).startswith(b"Once")
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


def test_ctrl_c_is_130_and_ends_the_line(root: Path) -> None:
    process = start(root, "Once", "--length", "100000000")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(40).startswith(b"Once")
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(60) == 130
    assert process.stderr.read() == b"\ninterrupted\n"


@pytest.mark.parametrize(
    ("target", "fault"), [(">/dev/full", "can't be written: No space left on device"), (">&-", "is closed")]
)
def test_output_that_can_not_be_written_is_exit_code_2(root: Path, target: str, fault: str) -> None:
    program = ["bash", "-c", f"exec {sys.executable} -m reprogpt generate A {target}"]
    done = subprocess.run(program, cwd=root, env=usual_environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, f"\nerror: standard output {fault}\n")


@pytest.mark.parametrize("what", ["trained", "evaluated", "id"])
def test_the_model_of_a_run_is_used(
    root: Path,
    recorded: dict[str, Run],
    generate: Generate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
) -> None:
    trained = recorded["trained"].info
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    text, messages = generate("A", *SHORT, "--run", trained.run_id[:10] if what == "id" else what)
    assert messages == f"model of run {trained.run_id}  {trained.run_name}\n"
    assert list(tmp_path.iterdir()) == []
    assert text != generate("A", *SHORT)[0]
    monkeypatch.setattr(command, "MODEL", root / "data/other")
    assert text == generate("A", *SHORT)[0]


def test_a_run_without_a_complete_model_is_refused(recorded: dict[str, Run], generate: Generate) -> None:
    with pytest.raises(PipelineError, match=r"run [0-9a-f]{32} \(killed, RUNNING\) has no model"):
        generate("A", "--run", "killed")
    with pytest.raises(PipelineError, match=r"no MLflow run has the id or name unknown[^%]*trained"):
        generate("A", "--run", "unknown")


@pytest.mark.parametrize("stdin", ["\ufeffOne\r\ntwo\r\n", "One\rtwo\r", "\ufeffOne\ntwo\n"])
def test_standard_input_is_read_as_a_corpus_is(generate: Generate, stdin: str) -> None:
    assert generate("-", *SHORT, stdin=stdin.encode())[0] == generate("One\ntwo", *SHORT)[0]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([""], b"", "the prompt is empty; give a text"),
        (["-"], b"\n", "the prompt is empty; give a text"),
        (["-"], b"A\xff", "the prompt is not UTF-8 text: byte 0xff at offset 1"),
        (["A\udcff"], b"", "the prompt is not UTF-8 text: byte 0xff at offset 1"),
        (
            ["\N{BULLET}" * 100_001],
            b"",
            "the prompt has 100001 characters, but at most 100000 are allowed",
        ),
        ([" " * 1_000_000], b"", "the prompt has 1000000 characters, but at most 100000 are allowed"),
        (["-"], b" " * 400_005, "the prompt has 400005 characters, but at most 100000 are allowed"),
        (["-"], b"^" * 1_000_000, "the prompt has more than 100000 characters, but at most 100000 are allowed"),
    ],
)
def test_an_empty_unreadable_or_too_long_prompt_is_refused(
    generate: Generate, arguments: list[str], stdin: bytes, message: str
) -> None:
    with pytest.raises(PipelineError, match=message):
        generate(*arguments, stdin=stdin)


@pytest.mark.parametrize("letter", [" ", "^", "\N{GRINNING FACE}"])
def test_the_longest_prompt_is_continued(generate: Generate, letter: str) -> None:
    """With what standard input may have besides: a byte order mark and the newline that echo adds."""
    text = letter * 100_000
    made = generate("-", *SHORT, stdin=f"\ufeff{text}\r\n".encode())[0]
    assert made == generate("-", *SHORT, stdin=text.encode())[0]
    assert made.startswith(text) and len(made) > len(text)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("data/absent", "data/absent is missing: `dvc repro` trains it, `dvc pull` fetches it"),
        (
            "data/small",
            r"the prompt has token 15496 \('Hello'\), but the model was trained with\nvocab_size=64, .* 0 to 63",
        ),
    ],
)
def test_a_model_that_can_not_answer_is_refused(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.setattr(command, "MODEL", Path(model))
    with pytest.raises(PipelineError, match=message):
        generate("Hello")


@pytest.mark.parametrize(
    ("option", "values", "bound"),
    [
        ("--length", ["0", "-1"], "{} is not in the range 1<=x<=2147483647."),
        ("--length", ["x", "1.5", ""], "'{}' is not a valid integer range."),
        ("--top-k", ["0"], "{} is not in the range 1<=x<=2147483647."),
        ("--temperature", ["-0.1", "nan", "inf", "1e-30", "1e+30"], "{} is not 0 or a number from 0.001 to 1000"),
        ("--temperature", ["x", ""], "'{}' is not a valid float."),
        ("--seed", ["-1", "9223372036854775808"], "{} is not in the range 0<=x<=9223372036854775807."),
    ],
)
def test_options_out_of_bounds_are_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    values: list[str],
    bound: str,
) -> None:
    for value in values:
        monkeypatch.setattr(sys, "argv", ["reprogpt", "generate", "A", f"{option}={value}"])
        assert run() == 2
        out, err = capsys.readouterr()
        assert (out, err.splitlines()[-1]) == ("", f"Error: Invalid value for '{option}': {bound.format(value)}")
