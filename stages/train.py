"""DVC stage `train`: token ids -> weights, with a record of every step. Logic: reprogpt.training.loop, .resume."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from reprogpt.corpus.tokens import decode, load_encoding, write_tokenizer
from reprogpt.errors import run_program
from reprogpt.files import write_json_atomic
from reprogpt.memory import keep_freed_memory
from reprogpt.model.checkpoint import save_model
from reprogpt.numerics import set_up_numerics
from reprogpt.params import load_params
from reprogpt.params.train import TrainParams
from reprogpt.pipeline import key_of, stage_inputs
from reprogpt.record.environment import environment_facts
from reprogpt.record.following import RunIdentity, follow_training
from reprogpt.training.group import Group
from reprogpt.training.history import summary, write_history
from reprogpt.training.launching import launcher, run_in_processes
from reprogpt.training.resume import Resumable, train_along
from reprogpt.training.resume_folder import hold_training, mark_made
from reprogpt.training.state import read_training

TRAIN, VAL = Path("data/tokens/train.npy"), Path("data/tokens/val.npy")
MODEL, SUMMARY = Path("data/model"), Path("data/metrics/train.json")
HISTORY, EVALUATIONS = Path("data/metrics/history.csv"), Path("data/metrics/evaluations.csv")


def main() -> None:
    run_in_processes(load_params(TrainParams), "stages.train", train)


def train(params: TrainParams, group: Group) -> None:
    keep_freed_memory()
    inputs, numerics = stage_inputs("train"), set_up_numerics(**params.arithmetic())
    training = read_training(TRAIN, VAL, params=params, numerics=numerics, group=group)
    if not group.is_first:
        return train_along(training, launcher())
    key, decoded = key_of(inputs), partial(decode, load_encoding(params.encoding))
    environment = environment_facts(numerics) | group.facts() | training.started_from
    with hold_training(inputs, environment) as held:
        resumable = Resumable(training, held)
        identity = RunIdentity(key, held.training_id, kept_for=held.folder)
        with follow_training(identity, params.model_dump(), environment, training.extent, decoded) as follower:
            follower.resume(asdict(record) for record in resumable.records)
            for record in resumable.until_stopped(launcher()):
                follower.step(asdict(record))
            save_model(MODEL, training.model, group.whole(training.model.state_dict()))
            write_tokenizer(MODEL)
            write_history(HISTORY, EVALUATIONS, resumable.records)
            facts = summary(resumable.records, training.plan, {"run_key": key} | training.started_from)
            write_json_atomic(SUMMARY, {"max_norm": params.max_norm} | facts)
            follower.finish()
        mark_made(held)


if __name__ == "__main__":
    run_program(main)
