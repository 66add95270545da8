"""`reprogpt generate [PROMPT]`: continue a text with a trained model, printed token by token."""

import codecs
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import tiktoken
import torch

from reprogpt.cli.command import RUN, Command
from reprogpt.data.charset import conversion_advice
from reprogpt.data.normalize import normalize_text
from reprogpt.data.tokens import encode, load_encoding
from reprogpt.errors import PipelineError
from reprogpt.messages import print_message, visible
from reprogpt.model import generate as generation
from reprogpt.model.gpt import GPTModel
from reprogpt.model.gpt2_format import best_step, load_model, trained_on_documents
from reprogpt.numerics.device import out_of_memory_advice, set_up_numerics
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.loader import load_params
from reprogpt.params.sampling_limits import (
    MAX_NEW_TOKENS,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_TOP_K,
    TEMPERATURE_RANGE,
    is_valid_temperature,
)
from reprogpt.paths import MODEL
from reprogpt.process.streams import write_output
from reprogpt.runs.find import parent_run, require_run
from reprogpt.tracking.store.client import search_runs
from reprogpt.tracking.store.models import download_checkpoint

STANDARD_INPUT = "-"
# Read of it: a character has at most 4 bytes, and normalizing drops a byte order mark and one newline, of CRLF here.
_MAX_INPUT_BYTES = 4 * MAX_PROMPT_CHARACTERS + 5


def _temperature(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not is_valid_temperature(value):
        raise click.BadParameter(f"{value:g} is not {TEMPERATURE_RANGE}")
    return value


@click.command(cls=Command)
@click.argument(
    "prompt",
    metavar="[PROMPT]",
    required=False,
    help="text to continue; - reads it from standard input. Default: start_context of params.yaml",
)
@click.option(
    "--length",
    metavar="N",
    type=click.IntRange(1, MAX_NEW_TOKENS),
    help="Generate this many tokens. Default: max_new_tokens of params.yaml.",
)
@click.option(
    "--temperature",
    metavar="T",
    type=float,
    callback=_temperature,
    help=f"{TEMPERATURE_RANGE}: 0 takes the most likely token each time, higher is more varied. "
    "Default: temperature of params.yaml.",
)
@click.option(
    "--top-k",
    metavar="K",
    type=click.IntRange(1, MAX_TOP_K),
    help="Draw from the K most likely tokens. Default: top_k of params.yaml.",
)
@click.option(
    "--seed",
    metavar="S",
    type=click.IntRange(0, MAX_SEED),
    help="Seed of every draw: the same seed gives the same text. Default: seed of params.yaml.",
)
@click.option("--run", metavar="RUN", help=f"Use the model of {RUN}, instead of data/model.")
@click.option(
    "--from-start",
    is_flag=True,
    help='PROMPT, which may be "", begins a document. For a model that was trained on several documents.',
)
@out_of_memory_advice()
def generate(
    prompt: str | None,
    *,
    length: int | None,
    temperature: float | None,
    top_k: int | None,
    seed: int | None,
    run: str | None,
    from_start: bool,
) -> int:
    """Print PROMPT and its continuation by the model, each character as soon as it is generated.

    Options default to params.yaml, so the same command gives the same text, and another --seed gives another text. With
    --temperature 0 the text is the greedy sample that evaluate makes of the same prompt. A model that was trained on
    several documents stops at the end of a document, unless stop_at_end_of_text of params.yaml is false.

    One newline at the end of standard input is not part of the prompt. Put -- before a PROMPT that begins with a dash.
    The model sees the last context_length tokens. It computes in fp32, on a GPU if there is one, else in portable
    numerics where they are supported, whatever params.yaml says of device, precision, matmul and numerics.

    \b
    Exit codes:
      0    the text is complete
      2    there is no model; the prompt is empty or has tokens outside the
           vocabulary; an option is out of bounds
      130  Ctrl-C
      141  the reader of the output closed the pipe

    \b
    Examples:
      reprogpt generate "Every effort moves you" --length 20
      reprogpt generate --temperature 0
      reprogpt generate "He said" --seed 7 --top-k 50 --run corrected
      reprogpt generate - < prompt.txt | head -n 3
      reprogpt generate --from-start ""
    """
    params = load_params(EvaluateParams)
    text = params.start_context if prompt is None else _read_prompt(prompt, may_be_empty=from_start)
    encoding = load_encoding(params.encoding)
    ids = encode(encoding, text).tolist()
    numerics = set_up_numerics(device="auto", precision="fp32", matmul="auto", numerics="auto")
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
    """Decode ids, yielding each character as soon as it is complete; joined, the same as tokens.decode.

    A token may hold a part of a character. Bytes that no later token can complete, and ids without a token, become the
    replacement character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        content = encoding.decode_single_token_bytes(token) if token < encoding.n_vocab else b"\xff"
        if piece := decoder.decode(content):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _read_prompt(prompt: str, *, may_be_empty: bool) -> str:
    """The prompt, or the contents of standard input, normalized as a corpus is: LF line ends, no byte order mark.

    One newline at the end of standard input, which echo adds, is dropped.
    """
    if prompt == STANDARD_INPUT:
        if sys.stdin is None:
            raise PipelineError("standard input is closed; give the prompt as an argument")
        content = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
        if len(content) > _MAX_INPUT_BYTES:
            raise _too_long(f"more than {MAX_PROMPT_CHARACTERS}")
    else:
        # Python decodes invalid UTF-8 in sys.argv in this way.
        content = prompt.encode("utf-8", errors="surrogateescape")
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
    print_message(f"model of run {trained.id}  {visible(trained.name)}")
    if remark:
        print_message(remark)
    with tempfile.TemporaryDirectory(prefix="reprogpt-generate-") as folder:
        checkpoint = download_checkpoint(trained.id, Path(folder))
        if checkpoint is None:
            raise PipelineError(
                f"run {trained.id} ({visible(trained.name)}, {trained.status}) has no model: it is uploaded when a\n"
                "training ends. `reprogpt sync` uploads one that still waits;\n"
                "`reprogpt lineage` names the runs of a result"
            )
        return _load(checkpoint)


def _load(folder: Path) -> tuple[GPTModel, bool]:
    """The model, and whether it was trained on several documents.

    Prints a message if its weights are not those of the training's last step.
    """
    model = load_model(folder)
    step = best_step(folder)
    if step is not None:
        print_message(f"weights of step {step}, the evaluation with the lowest val_loss (keep: best)")
    return model, trained_on_documents(folder)


def _refuse_unknown_tokens(ids: list[int], encoding: tiktoken.Encoding, vocab_size: int) -> None:
    largest = max(ids)
    if largest >= vocab_size:
        raise PipelineError(
            f"the prompt has token {largest} ({encoding.decode([largest])!r}), but the model was trained with\n"
            f"vocab_size={vocab_size}, which allows 0 to {vocab_size - 1}; leave that word out"
        )
