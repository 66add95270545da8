"""The documentation's pictures of MLflow, of two runs in this store: python -m tests.browser.screenshots A B

The runs are given by name; of several with one name the newest is taken.
"""

import sys
from pathlib import Path

from tests.browser.mlflow_page import MlflowPage
from tests.browser.mlflow_ui import NO_BROWSER, browser_program, browsing, serving

FOLDER = Path("docs/images")
METRICS = ("loss", "lr", "max_grad")
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


def main(first: str, second: str) -> None:
    """Write the three pictures."""
    program = browser_program()
    if program is None:
        raise SystemExit(NO_BROWSER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with serving(Path()) as address, browsing(program, {"width": 1120, "height": 800}, scale=1.5) as page:
        mlflow = MlflowPage(page, address)
        mlflow.open_experiment()
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


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit('name two runs: make screenshots RUNS="NAME NAME"')
    main(*sys.argv[1:])
