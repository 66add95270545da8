"""DVC stage `train`: token ids -> weights, with a record of every step. Logic: reprogpt.training.loop."""

from dataclasses import asdict
from pathlib import Path

from reprogpt.corpus.tokens import decode, load_encoding, read_tokens, write_tokenizer
from reprogpt.errors import run_program
from reprogpt.files import write_json_atomic, write_text_atomic
from reprogpt.model.checkpoint import save_model
from reprogpt.numerics import set_up_numerics
from reprogpt.params import load_params
from reprogpt.params.train import TrainParams
from reprogpt.pipeline import run_key
from reprogpt.record.following import follow_training
from reprogpt.training.history import history_csv, summary
from reprogpt.training.loop import StepRecord, train
from reprogpt.training.state import prepare_training

TRAIN, VAL = Path("data/tokens/train.npy"), Path("data/tokens/val.npy")
MODEL, HISTORY, SUMMARY = Path("data/model"), Path("data/metrics/history.csv"), Path("data/metrics/train.json")


def main() -> None:
    params, key = load_params(TrainParams), run_key("train")
    choice = {key: getattr(params, key) for key in ("device", "precision", "matmul", "numerics")}
    numerics = set_up_numerics(**choice)
    encoding = load_encoding(params.encoding)
    ids = (read_tokens(path, vocab_size=params.vocab_size) for path in (TRAIN, VAL))
    prompt = encoding.encode_ordinary(params.start_context)
    training = prepare_training(*ids, prompt=prompt, params=params, numerics=numerics)
    steps: list[StepRecord] = []
    total = training.plan.total_steps
    with follow_training(params.model_dump(), run_key=key, total_steps=total, numerics=numerics) as follower:
        for record in train(training):
            if isinstance(record, StepRecord):
                steps.append(record)
                follower.step(asdict(record))
            else:
                follower.sample(record.epoch, decode(encoding, record.ids))
        save_model(MODEL, training.model)
        write_tokenizer(MODEL)
        write_text_atomic(HISTORY, history_csv(steps))
        write_json_atomic(SUMMARY, {"run_key": key, "max_norm": params.max_norm} | summary(steps, training.plan))
        follower.finish()


if __name__ == "__main__":
    run_program(main)
