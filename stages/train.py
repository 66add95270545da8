"""DVC stage `train`: token ids -> weights, with a record of every step. Logic: reprogpt.training.loop, .resume."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

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
from reprogpt.training.group import joined_group
from reprogpt.training.history import evaluations_csv, history_csv, summary
from reprogpt.training.launching import launch, launcher, worker
from reprogpt.training.resume import Resumable
from reprogpt.training.resume_folder import hold_training, mark_made
from reprogpt.training.state import Training, prepare_training

TRAIN, VAL = Path("data/tokens/train.npy"), Path("data/tokens/val.npy")
MODEL, SUMMARY = Path("data/model"), Path("data/metrics/train.json")
HISTORY, EVALUATIONS = Path("data/metrics/history.csv"), Path("data/metrics/evaluations.csv")


def main() -> None:
    params, inputs = load_params(TrainParams), stage_inputs("train")
    if params.in_several_processes and launcher() is None:
        launch("stages.train", nproc_per_node=params.nproc_per_node, torchrun_args=params.torchrun_args)
        return
    keep_freed_memory()
    with worker(), joined_group(params.device) as group:
        numerics = set_up_numerics(**params.arithmetic())
        encoding = load_encoding(params.encoding)
        ids = (read_tokens(path, vocab_size=params.vocab_size) for path in (TRAIN, VAL))
        prompt = encoding.encode_ordinary(params.start_context)
        training = prepare_training(*ids, prompt=prompt, params=params, numerics=numerics, group=group)
        if group.is_first:
            train_on_record(training, inputs, partial(decode, encoding))
        else:
            with stop_softly(launcher(), quiet=True) as stopping:
                for _ in Resumable(training, held=None).go_on(stopping):
                    pass
            group.whole(training.model.state_dict())  # for the first process, which saves it


def train_on_record(training: Training, inputs: dict[str, Any], decoded: Callable[[list[int]], str]) -> None:
    """Train, with resume points, MLflow run and progress; write the outs.

    inputs: pipeline.stage_inputs of train. decoded: token ids -> text.
    """
    params, group = training.params, training.group
    key, steps = key_of(inputs), training.plan.total_steps
    environment = environment_facts(training.numerics) | group.facts() | training.started_from
    with hold_training(inputs, environment) as held:
        resumable = Resumable(training, held)
        identity = RunIdentity(key, held.training_id, kept_for=held.folder)
        with follow_training(identity, params.model_dump(), environment, steps, decoded) as follower:
            follower.resume(asdict(record) for record in resumable.records)
            with stop_softly(launcher()) as stopping:
                for record in resumable.go_on(stopping):
                    follower.step(asdict(record))
            save_model(MODEL, training.model, group.whole(training.model.state_dict()))
            write_tokenizer(MODEL)
            write_text_atomic(HISTORY, history_csv(resumable.records))
            write_text_atomic(EVALUATIONS, evaluations_csv(resumable.records))
            facts = summary(resumable.records, training.plan) | training.started_from
            write_json_atomic(SUMMARY, {"run_key": key, "max_norm": params.max_norm} | facts)
            follower.finish()
        mark_made(held)


if __name__ == "__main__":
    run_program(main)
