"""DVC stage `evaluate`: whole-split losses and text samples. Logic: reprogpt.training.evaluation, .samples."""

from pathlib import Path

from reprogpt.corpus.tokens import load_encoding, read_tokens
from reprogpt.errors import run_program
from reprogpt.files import read_json, write_json_atomic, write_text_atomic
from reprogpt.memory import keep_freed_memory
from reprogpt.model.checkpoint import load_model
from reprogpt.numerics import set_up_numerics
from reprogpt.params import load_params
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.record.results import follow_results, record_evaluation
from reprogpt.training.evaluation import final_results
from reprogpt.training.resume_folder import release_trainings
from reprogpt.training.samples import sample_text

TRAIN, VAL = Path("data/tokens/train.npy"), Path("data/tokens/val.npy")
MODEL, SUMMARY = Path("data/model"), Path("data/metrics/train.json")
RESULTS, SAMPLES = Path("data/metrics/eval.json"), Path("data/samples.txt")


def main() -> None:
    keep_freed_memory()
    params = load_params(EvaluateParams)
    facts = read_json(SUMMARY, needs="run_key", remedy="`dvc repro -f train` writes it again")
    numerics = set_up_numerics(**params.arithmetic())
    encoding = load_encoding(params.encoding)
    release_trainings()
    with follow_results(facts["run_key"][0], adds="final_val_loss") as box:
        model = load_model(MODEL).to(numerics.device)
        train, val = (read_tokens(path, vocab_size=model.config.vocab_size) for path in (TRAIN, VAL))
        results = final_results(model, encoding, train, val, batch_size=params.rows_together, numerics=numerics)
        write_json_atomic(RESULTS, results)
        write_text_atomic(SAMPLES, sample_text(model, encoding, params=params, numerics=numerics))
        print(f"evaluate: validation loss {results['final_val_loss']:.3f}, perplexity {results['val_perplexity']:.1f}")
        record_evaluation(box, params.model_dump(), facts["total_steps"] - 1)


if __name__ == "__main__":
    run_program(main)
