"""The documentation's pictures of MLflow, of runs in this store.

    python -m tools.screenshots A B               of two runs, given by name, compared
    python -m tools.screenshots --group-by KEY    of all runs, grouped by a parameter

Of several runs with one name the newest is taken.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.mlflow_page import MlflowPage
from tools.mlflow_ui import NO_BROWSER, browser_program, browsing, serving

FOLDER = Path("docs/images")
METRICS = ("loss", "lr", "max_grad")
GROUPED_METRICS = ("loss", "val_loss")
MAX_BYTES = 200_000
# The assistant's button would cover a corner of each picture.
STYLE = "[data-assistant-ui] { display: none !important }"


def take(mlflow: MlflowPage, name: str, height: int) -> None:
    """Write one picture, of the upper part of the page. Raises SystemExit where the file is too large for a page."""
    path = FOLDER / f"{name}.png"
    width = mlflow.page.viewport_size["width"] if mlflow.page.viewport_size else 0
    mlflow.page.mouse.move(0, 0)
    mlflow.page.evaluate("document.activeElement?.blur()")
    mlflow.page.screenshot(
        path=path, style=STYLE, animations="disabled", clip={"x": 0, "y": 0, "width": width, "height": height}
    )
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {MAX_BYTES}")
    print(f"{path}: {path.stat().st_size} bytes")


@contextmanager
def experiment_page() -> Iterator[MlflowPage]:
    """The list of this store's runs in a browser."""
    program = browser_program()
    if program is None:
        raise SystemExit(NO_BROWSER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with serving(Path()) as address, browsing(program, {"width": 1120, "height": 800}, scale=1.5) as page:
        mlflow = MlflowPage(page, address)
        mlflow.open_experiment()
        yield mlflow


def compared(first: str, second: str) -> None:
    """Write the three pictures of two runs."""
    with experiment_page() as mlflow:
        mlflow.tick(first, second)
        take(mlflow, "mlflow-runs", 400)
        mlflow.compare()
        mlflow.differing_parameters()
        mlflow.scroll_to_parameters()
        take(mlflow, "mlflow-differences", 800)
        mlflow.back_to_runs()
        mlflow.fold_sidebar()
        mlflow.show_charts(METRICS)
        mlflow.run_names(2)
        mlflow.show_only(first, second)
        charts = mlflow.charts(METRICS, (first, second))
        if any(set(charts.get(metric, {})) != {first, second} for metric in METRICS):
            raise SystemExit(f"not every chart of {', '.join(METRICS)} has both runs, and these only")
        take(mlflow, "mlflow-charts", 660)


def grouped(parameter: str) -> None:
    """Write the picture of groups."""
    with experiment_page() as mlflow:
        mlflow.fold_sidebar()
        mlflow.show_charts(GROUPED_METRICS)
        values = mlflow.group_by(parameter)
        mlflow.wait_for_groups(GROUPED_METRICS, len(values))
        take(mlflow, "mlflow-groups", 660)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--group-by", metavar="KEY")
    arguments = parser.parse_args()
    if arguments.group_by:
        grouped(arguments.group_by)
    elif len(arguments.runs) == 2:
        compared(*arguments.runs)
    else:
        parser.error('name two runs: make screenshots RUNS="NAME NAME"')
