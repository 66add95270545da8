"""DVC stage `train`: token ids -> model, with a record of every step. Logic: reprogpt.training."""

from functools import partial

from reprogpt.data.tokens import contains, decode, load_encoding, read_tokens, write_tokenizer
from reprogpt.distributed.launcher import launcher_process, run_in_processes
from reprogpt.distributed.process_group import ProcessGroup
from reprogpt.dvc.pipeline import announce_recorded_outs, run_key_of, stage_inputs
from reprogpt.files import require_writable, write_json_atomic
from reprogpt.model.gpt2_format import save_model
from reprogpt.numerics.allocator import retain_freed_memory
from reprogpt.numerics.device import announce_device, out_of_memory_advice, set_up_numerics
from reprogpt.params.loader import load_params
from reprogpt.params.train import TrainParams
from reprogpt.paths import EVALUATIONS, HISTORY, MODEL, TRAIN_SUMMARY, TRAIN_TOKENS, VAL_TOKENS
from reprogpt.tracking.log.environment import environment_tags, resume_tags
from reprogpt.tracking.log.training import RunIdentity, start_run
from reprogpt.training.build import build_training
from reprogpt.training.history import summary, write_history
from reprogpt.training.resume import CheckpointedTraining, run_worker
from reprogpt.training.run_dir import lock_run_dir, mark_complete
from stages import run_stage


def main() -> None:
    params = load_params(TrainParams)
    run_in_processes(params, "stages.train", train, torchrun_args=params.torchrun_args)


@out_of_memory_advice()
def train(params: TrainParams, group: ProcessGroup) -> None:
    retain_freed_memory()
    inputs = stage_inputs("train")
    if group.is_first:
        for folder in (MODEL.parent, HISTORY.parent):
            require_writable(folder)
    numerics = set_up_numerics(**params.arithmetic() | {"nproc_per_node": group.size})  # of all machines
    if group.is_first:
        announce_device(numerics)
    training = build_training(TRAIN_TOKENS, VAL_TOKENS, params=params, numerics=numerics, group=group)
    if not group.is_first:
        run_worker(training, launcher_process())
        return
    environment = environment_tags(numerics) | group.tags() | training.initial_weights_tags
    with lock_run_dir(inputs, resume_tags(environment)) as run_dir_lock:
        checkpointed = CheckpointedTraining(training, run_dir_lock)
        identity = RunIdentity(run_key_of(inputs), run_dir_lock.training_id, run_dir_lock.run_dir)
        encoding = load_encoding(params.encoding)
        decode_sample = partial(decode, encoding)
        with start_run(identity, params.model_dump(), environment, training.size, decode_sample) as run_logger:
            run_logger.resume(checkpointed.records)
            for record in checkpointed.run(launcher_process()):
                run_logger.log_step(record, is_latest=record.step + 1 == training.step)
            kept_step = checkpointed.kept_step
            best_step = kept_step if params.keep == "best" else None
            on_documents = contains(read_tokens(TRAIN_TOKENS, vocab_size=params.vocab_size), encoding.eot_token)
            weights = checkpointed.kept_weights()
            save_model(MODEL, training.model, weights, best_step=best_step, on_documents=on_documents)
            write_tokenizer(MODEL, params.context_length)
            write_history(HISTORY, EVALUATIONS, checkpointed.records)
            digests = {"run_key": identity.run_key} | training.initial_weights_tags
            facts = summary(checkpointed.records, training.plan, params, digests=digests, kept_step=kept_step)
            write_json_atomic(TRAIN_SUMMARY, facts)
            run_logger.finish(kept_step)
        mark_complete(run_dir_lock)
    announce_recorded_outs("train", inputs)


if __name__ == "__main__":
    run_stage(main)
