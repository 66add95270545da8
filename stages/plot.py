"""DVC stage `plot`: the training's history -> figures. Logic: reprogpt.record.figures."""

import json
from pathlib import Path

from reprogpt.errors import run_program
from reprogpt.record.figures import draw_all, read_history, save_figure
from reprogpt.record.results import follow_results, record_plots

HISTORY, SUMMARY = Path("data/metrics/history.csv"), Path("data/metrics/train.json")
PLOTS = Path("data/plots")
NEXT = """
Weights: data/model   numbers: data/metrics   figures: data/plots   samples: data/samples.txt
Compare runs:   mlflow ui
Try a number:   dvc exp run -S peak_lr=0.001"""


def main() -> None:
    facts = json.loads(SUMMARY.read_text("utf-8"))
    with follow_results(facts["run_key"]) as run:
        for name, figure in draw_all(read_history(HISTORY), facts).items():
            save_figure(figure, PLOTS, name)
        if run:
            record_plots(run)
    print(NEXT)


if __name__ == "__main__":
    run_program(main)
