"""DVC stage `evaluate`: losses over both splits, and text samples. Logic: reprogpt.evaluation."""

import tiktoken

from reprogpt.data.tokens import load_encoding, read_tokens
from reprogpt.distributed.launcher import run_in_processes
from reprogpt.distributed.process_group import ProcessGroup
from reprogpt.evaluation.final_metrics import chosen_rows, final_metrics
from reprogpt.evaluation.samples import sample_text
from reprogpt.files import read_json, write_json_atomic, write_text_atomic
from reprogpt.model.gpt import GPTModel
from reprogpt.model.gpt2_format import load_model, trained_on_documents
from reprogpt.numerics.allocator import retain_freed_memory
from reprogpt.numerics.device import Numerics, announce_device, out_of_memory_advice, set_up_numerics
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.loader import load_params
from reprogpt.paths import EVAL_RESULTS, MODEL, SAMPLES, TRAIN_SUMMARY, TRAIN_TOKENS, VAL_TOKENS
from reprogpt.tracking.log.results import log_results, record_evaluation
from reprogpt.training.run_dir import prune
from stages import run_stage


def main() -> None:
    run_in_processes(load_params(EvaluateParams), "stages.evaluate", evaluate)


@out_of_memory_advice()
def evaluate(params: EvaluateParams, group: ProcessGroup) -> None:
    retain_freed_memory()
    train_summary = read_json(TRAIN_SUMMARY, needs="run_key", remedy="`dvc repro -f train` writes it again")
    run_key = train_summary["run_key"][0]
    last_step = train_summary["total_steps"] - 1
    numerics = set_up_numerics(**params.arithmetic())
    encoding = load_encoding(params.encoding)
    if not group.is_first:
        _final_metrics(params, numerics, group, load_model(MODEL).to(numerics.device), encoding)
        return
    announce_device(numerics)
    prune()
    with log_results(run_key, adds="final_val_loss") as outbox:
        model = load_model(MODEL).to(numerics.device)
        results = _final_metrics(params, numerics, group, model, encoding)
        write_json_atomic(EVAL_RESULTS, results)
        stops = params.stop_at_end_of_text and trained_on_documents(MODEL)
        stop_token = encoding.eot_token if stops else None
        samples = sample_text(model, encoding, params=params, numerics=numerics, stop_token=stop_token)
        write_text_atomic(SAMPLES, samples)
        print(f"evaluate: validation loss {results['final_val_loss']:.3f}, perplexity {results['val_perplexity']:.1f}")
        record_evaluation(outbox, params.model_dump(), last_step)


def _final_metrics(
    params: EvaluateParams, numerics: Numerics, group: ProcessGroup, model: GPTModel, encoding: tiktoken.Encoding
) -> dict[str, float]:
    """The metrics, by all processes together; rank 0 says which rows they are of."""
    train_ids = read_tokens(TRAIN_TOKENS, vocab_size=model.config.vocab_size)
    val_ids = read_tokens(VAL_TOKENS, vocab_size=model.config.vocab_size)
    length = model.config.context_length
    num_rows = (len(train_ids) - 1) // length
    num_chosen = len(chosen_rows(num_rows, length, params.eval_max_tokens))
    if group.is_first and num_chosen < num_rows:
        print(f"evaluate: final_train_loss is of {num_chosen} of {num_rows} rows of {length} tokens, spread evenly")
    return final_metrics(
        model,
        encoding,
        train_ids,
        val_ids,
        batch_size=params.rows_per_evaluation,
        numerics=numerics,
        max_train_tokens=params.eval_max_tokens,
        group=group,
    )


if __name__ == "__main__":
    run_stage(main)
