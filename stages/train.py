"""DVC stage `train`: token ids -> weights, with a record of every step. Logic: reprogpt.training.loop, .resume."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from reprogpt.corpus.tokens import decode, load_encoding, read_tokens, write_tokenizer
from reprogpt.errors import run_program
from reprogpt.files import write_json_atomic, write_text_atomic
from reprogpt.memory import keep_freed_memory
from reprogpt.model.checkpoint import save_model
from reprogpt.numerics import set_up_numerics
from reprogpt.params import load_params
from reprogpt.params.train import TrainParams
from reprogpt.pipeline import key_of, stage_inputs
from reprogpt.record.environment import environment_facts
from reprogpt.record.following import RunIdentity, follow_training
from reprogpt.stopping import stop_softly
from reprogpt.training.history import evaluations_csv, history_csv, summary
from reprogpt.training.resume import Resumable
from reprogpt.training.resume_folder import hold_training, mark_made
from reprogpt.training.state import prepare_training

TRAIN, VAL = Path("data/tokens/train.npy"), Path("data/tokens/val.npy")
MODEL, SUMMARY = Path("data/model"), Path("data/metrics/train.json")
HISTORY, EVALUATIONS = Path("data/metrics/history.csv"), Path("data/metrics/evaluations.csv")


def main() -> None:
    keep_freed_memory()
    params, inputs = load_params(TrainParams), stage_inputs("train")
    numerics = set_up_numerics(**params.arithmetic())
    encoding = load_encoding(params.encoding)
    ids = (read_tokens(path, vocab_size=params.vocab_size) for path in (TRAIN, VAL))
    prompt = encoding.encode_ordinary(params.start_context)
    training = prepare_training(*ids, prompt=prompt, params=params, numerics=numerics)
    key, steps = key_of(inputs), training.plan.total_steps
    environment = environment_facts(numerics) | training.started_from
    with hold_training(inputs, environment) as held:
        resumable = Resumable(training, held)
        identity = RunIdentity(key, held.training_id, kept_for=held.folder)
        with follow_training(identity, params.model_dump(), environment, steps, partial(decode, encoding)) as follower:
            follower.resume(asdict(record) for record in resumable.records)
            with stop_softly() as stopping:
                for record in resumable.go_on(stopping):
                    follower.step(asdict(record))
            save_model(MODEL, training.model)
            write_tokenizer(MODEL)
            write_text_atomic(HISTORY, history_csv(resumable.records))
            write_text_atomic(EVALUATIONS, evaluations_csv(resumable.records))
            facts = summary(resumable.records, training.plan, {"run_key": key} | training.started_from)
            write_json_atomic(SUMMARY, {"max_norm": params.max_norm} | facts)
            follower.finish()
        mark_made(held)


if __name__ == "__main__":
    run_program(main)
