"""`reprogpt generate [PROMPT]`: the model continues a text, printed as its tokens are generated."""

import codecs
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import tiktoken
import torch

from reprogpt.data.charset import conversion_advice
from reprogpt.data.normalize import normalize_text
from reprogpt.data.tokens import encode, load_encoding
from reprogpt.errors import PipelineError
from reprogpt.model import generate as generation
from reprogpt.model.gpt import GPTModel
from reprogpt.model.gpt2_format import best_step, load_model, trained_on_documents
from reprogpt.numerics.device import out_of_memory_advice, set_up_numerics
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.loader import load_params
from reprogpt.params.sampling_limits import MAX_PROMPT_CHARACTERS
from reprogpt.paths import MODEL
from reprogpt.process.output import write_output
from reprogpt.runs.find import parent_run, require_run
from reprogpt.tracking.store.client import search_runs
from reprogpt.tracking.store.models import download_checkpoint

STANDARD_INPUT = "-"
# Read of it: a character has at most 4 bytes, and normalizing drops a byte order mark and one newline, of CRLF here.
_MAX_INPUT_BYTES = 4 * MAX_PROMPT_CHARACTERS + 5


@out_of_memory_advice()
def generate(
    prompt: str | None,
    *,
    length: int | None,
    temperature: float | None,
    top_k: int | None,
    seed: int | None,
    run: str | None,
    from_start: bool = False,
) -> int:
    """Write prompt and continuation to standard output, token by token, and a final newline; returns 0.

    prompt: STANDARD_INPUT reads it from there; with from_start it begins a document, and may be "".
    run: whose model, as in require_run; None takes data/model.
    The others have the bounds of cli/parser.py; None takes params.yaml's value for evaluate.
    Raises PipelineError for an empty, unreadable or too long prompt, tokens outside the model's vocabulary, a missing
    model, and output that can't be written; BrokenPipeError if the reader has closed the pipe.
    """
    params = load_params(EvaluateParams)
    text = params.start_context if prompt is None else _read_prompt(prompt, may_be_empty=from_start)
    encoding = load_encoding(params.encoding)
    ids = encode(encoding, text).tolist()
    numerics = set_up_numerics(device="auto", precision="fp32", matmul="auto")
    model, on_documents = _load_workspace_model() if run is None else _load_run_model(run)
    model.to(numerics.device)
    if from_start and not on_documents:
        raise PipelineError(
            "--from-start needs a model that was trained on several documents: this one never saw <|endoftext|>;\n"
            "leave --from-start out, or train on a manifest"
        )
    ids = [encoding.eot_token, *ids] if from_start else ids
    _refuse_unknown_tokens(ids, encoding, model.config.vocab_size)
    tokens = generation.generate(
        model,
        ids,
        params.max_new_tokens if length is None else length,
        temperature=params.temperature if temperature is None else temperature,
        top_k=params.top_k if top_k is None else top_k,
        generator=torch.Generator().manual_seed(params.seed if seed is None else seed),
        stop_token=encoding.eot_token if on_documents and params.stop_at_end_of_text else None,
    )
    write_output(text)
    for piece in pieces(encoding, tokens):
        write_output(piece)
    write_output("\n")
    return 0


def pieces(encoding: tiktoken.Encoding, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids, each character as soon as it is complete; joined, the same as tokens.decode.

    A token may hold a part of a character. The replacement character stands for bytes that no later token can
    complete, and for ids without a token.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        content = encoding.decode_single_token_bytes(token) if token < encoding.n_vocab else b"\xff"
        if piece := decoder.decode(content):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _read_prompt(prompt: str, *, may_be_empty: bool) -> str:
    """The prompt, or the contents of standard input as a corpus is read: LF line ends, no byte order mark.

    One newline at its end, which echo adds, is dropped.
    """
    if prompt == STANDARD_INPUT:
        if sys.stdin is None:
            raise PipelineError("standard input is closed; give the prompt as an argument")
        content = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
        if len(content) > _MAX_INPUT_BYTES:
            raise _too_long(f"more than {MAX_PROMPT_CHARACTERS}")
    else:
        content = prompt.encode(
            "utf-8", errors="surrogateescape"
        )  # undo Python's decoding of invalid UTF-8 in sys.argv
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        fault = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise PipelineError(f"the prompt is not UTF-8 text: {fault}; {conversion_advice(content)}") from None
    if prompt == STANDARD_INPUT:
        text = normalize_text(text).removesuffix("\n")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise _too_long(str(len(text)))
    if not text and not may_be_empty:
        raise PipelineError(
            "the prompt is empty; give a text of at least one character, or leave PROMPT out for start_context of\n"
            "params.yaml"
        )
    return text


def _too_long(num_characters: str) -> PipelineError:
    return PipelineError(
        f"the prompt has {num_characters} characters, but at most {MAX_PROMPT_CHARACTERS} are allowed; give its end,\n"
        "since the model sees the last context_length tokens only"
    )


def _load_workspace_model() -> tuple[GPTModel, bool]:
    if not MODEL.is_dir():
        raise PipelineError(
            f"{MODEL} is missing: `dvc repro` trains it, `dvc pull` fetches it where a remote has it,\n"
            "and --run RUN takes the model of an MLflow run"
        )
    return _load(MODEL)


def _load_run_model(what: str) -> tuple[GPTModel, bool]:
    """The model that the run trained, downloaded into a temporary folder, as _load returns it."""
    runs = search_runs()
    found, remark = require_run(what, runs)
    trained = parent_run(found, runs) or found
    print(f"model of run {trained.id}  {trained.name}", file=sys.stderr)
    if remark:
        print(remark, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="reprogpt-generate-") as folder:
        checkpoint = download_checkpoint(trained.id, Path(folder))
        if checkpoint is None:
            raise PipelineError(
                f"run {trained.id} ({trained.name}, {trained.status}) has no model: it is uploaded when a\n"
                "training ends. `reprogpt sync` uploads one that still waits;\n"
                "`reprogpt lineage` names the runs of a result"
            )
        return _load(checkpoint)


def _load(folder: Path) -> tuple[GPTModel, bool]:
    """The model, and whether it was trained on several documents.

    Says on standard error if its weights are not those of a training's last step.
    """
    model = load_model(folder)
    step = best_step(folder)
    if step is not None:
        print(f"weights of step {step}, the evaluation with the lowest val_loss (keep: best)", file=sys.stderr)
    return model, trained_on_documents(folder)


def _refuse_unknown_tokens(ids: list[int], encoding: tiktoken.Encoding, vocab_size: int) -> None:
    largest = max(ids)
    if largest >= vocab_size:
        raise PipelineError(
            f"the prompt has token {largest} ({encoding.decode([largest])!r}), but the model was trained with\n"
            f"vocab_size={vocab_size}, which allows 0 to {vocab_size - 1}; leave that word out"
        )
