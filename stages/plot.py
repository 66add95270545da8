"""DVC stage `plot`: the training's history -> figures. Logic: reprogpt.plotting.training_figures."""

from reprogpt.files import read_json
from reprogpt.paths import HISTORY, PLOTS, TRAIN_SUMMARY
from reprogpt.plotting.style import save_figure
from reprogpt.plotting.training_figures import draw_all, read_history
from reprogpt.tracking.log.results import log_results, record_plots
from stages import run_stage

NEXT_STEPS = """
Model: data/model   metrics: data/metrics   figures: data/plots   samples: data/samples.txt
Compare runs:   mlflow ui
Change a value: dvc exp run -S peak_lr=0.001"""


def main() -> None:
    train_summary = read_json(TRAIN_SUMMARY, needs="run_key", remedy="`dvc repro -f train` writes it again")
    with log_results(train_summary["run_key"][0], adds="plots") as outbox:
        for name, figure in draw_all(read_history(HISTORY), train_summary).items():
            save_figure(figure, PLOTS, name)
        record_plots(outbox)
    print(NEXT_STEPS)


if __name__ == "__main__":
    run_stage(main)
