"""DVC stage `evaluate`: losses over both splits, and text samples. Logic: reprogpt.evaluation."""

from reprogpt.corpus.tokens import load_encoding, read_tokens
from reprogpt.evaluation.results import final_results
from reprogpt.evaluation.samples import sample_text
from reprogpt.files import read_json, write_json_atomic, write_text_atomic
from reprogpt.model.hf_directory import load_model, trained_on_documents
from reprogpt.numerics.allocator import retain_freed_memory
from reprogpt.numerics.device import announce_device, out_of_memory_advice, set_up_numerics
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.loader import load_params
from reprogpt.paths import EVAL_RESULTS, MODEL, SAMPLES, TRAIN_SUMMARY, TRAIN_TOKENS, VAL_TOKENS
from reprogpt.tracking.results import log_results, record_evaluation
from reprogpt.training.run_dir import prune
from stages import run_stage


@out_of_memory_advice()
def main() -> None:
    retain_freed_memory()
    params = load_params(EvaluateParams)
    train_summary = read_json(TRAIN_SUMMARY, needs="run_key", remedy="`dvc repro -f train` writes it again")
    run_key = train_summary["run_key"][0]
    last_step = train_summary["total_steps"] - 1
    numerics = set_up_numerics(**params.arithmetic())
    announce_device(numerics)
    encoding = load_encoding(params.encoding)
    prune()
    with log_results(run_key, adds="final_val_loss") as outbox:
        model = load_model(MODEL).to(numerics.device)
        train_ids = read_tokens(TRAIN_TOKENS, vocab_size=model.config.vocab_size)
        val_ids = read_tokens(VAL_TOKENS, vocab_size=model.config.vocab_size)
        results = final_results(
            model, encoding, train_ids, val_ids, batch_size=params.rows_per_forward, numerics=numerics
        )
        write_json_atomic(EVAL_RESULTS, results)
        stops = params.stop_at_end_of_text and trained_on_documents(MODEL)
        stop_token = encoding.eot_token if stops else None
        samples = sample_text(model, encoding, params=params, numerics=numerics, stop_token=stop_token)
        write_text_atomic(SAMPLES, samples)
        print(f"evaluate: validation loss {results['final_val_loss']:.3f}, perplexity {results['val_perplexity']:.1f}")
        record_evaluation(outbox, params.model_dump(), last_step)


if __name__ == "__main__":
    run_stage(main)
