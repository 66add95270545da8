"""DVC stage `plot`: the training's history -> figures. Logic: reprogpt.record.figures."""

from pathlib import Path

from reprogpt.errors import run_program
from reprogpt.files import read_json
from reprogpt.record.drawing import save_figure
from reprogpt.record.figures import draw_all, read_history
from reprogpt.record.results import follow_results, record_plots

HISTORY, SUMMARY = Path("data/metrics/history.csv"), Path("data/metrics/train.json")
PLOTS = Path("data/plots")
NEXT = """
Weights: data/model   numbers: data/metrics   figures: data/plots   samples: data/samples.txt
Compare runs:   mlflow ui
Try a number:   dvc exp run -S peak_lr=0.001"""


def main() -> None:
    facts = read_json(SUMMARY, needs="run_key", remedy="`dvc repro -f train` writes it again")
    with follow_results(facts["run_key"][0], adds="plots") as box:
        for name, figure in draw_all(read_history(HISTORY), facts).items():
            save_figure(figure, PLOTS, name)
        record_plots(box)
    print(NEXT)


if __name__ == "__main__":
    run_program(main)
