"""What a person does on MLflow's pages, and what they then see there. MLflow 3.17.

Every wait is Playwright's: until what is looked for is there, at most the page's timeout.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from playwright.sync_api import Locator, Page, TimeoutError

EXPERIMENT = "reprogpt"
Points = list[tuple[int, float]]

# Metric -> run -> its points, of every line that is really drawn: a path of the run's colour that has a size.
DRAWN = """() => {
    const charts = {};
    for (const chart of document.querySelectorAll('.js-plotly-plot')) {
        const paths = [...chart.querySelectorAll('.scatterlayer .trace')].map(trace => trace.querySelector('.js-line'));
        chart.data.forEach((line, index) => {
            const box = paths[index]?.getBBox();
            if (!box || !box.width || !box.height || !line.x?.length) return;
            (charts[line.metricKey] ??= {})[line.name] = Array.from(line.x, (step, i) => [step, line.y[i]]);
        });
    }
    return charts;
}"""
ARE_DRAWN = """([metrics, runs]) => {
    const charts = (DRAWN)();
    const names = [...runs].sort().join();
    return metrics.every(metric => Object.keys(charts[metric] ?? {}).sort().join() === names);
}""".replace("DRAWN", DRAWN)


# A line of a group has no name.
GROUPS_ARE_DRAWN = """([metrics, count]) => metrics.every(metric =>
    [...document.querySelectorAll('.js-plotly-plot')].some(chart =>
        chart.data.filter(line => line.metricKey === metric && line.x?.length).length >= count))"""


class MlflowPage:
    """A browser's page on the MLflow server at an address."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self._address = address

    def open_experiment(self) -> None:
        """From the start page to our experiment's list of runs, the assistant's panel closed."""
        self.page.goto(self._address)
        self.page.get_by_role("button", name="Model training").click()  # else: traces of language models
        self.page.get_by_role("main").get_by_role("link", name=EXPERIMENT, exact=True).click()
        self.page.get_by_role("button", name="Close", exact=True).click()  # it opens by itself, once
        self.page.get_by_role("heading", name="Runs", exact=True).wait_for()

    def run_names(self, count: int) -> list[str]:
        """Names of the listed runs, from the top, once there are at least `count` of them."""
        links = self.page.locator("[role=gridcell] a[href*='/runs/']")
        links.nth(count - 1).wait_for()
        return links.all_inner_texts()

    def tick(self, *names: str) -> None:
        """Select runs in the list; of several with one name the topmost, which is the newest."""
        for name in names:
            self._row(name).get_by_role("checkbox", name="toggle row selection").check()

    def compare(self) -> None:
        """Press Compare, and wait for that page."""
        self.page.get_by_role("button", name="Compare", exact=True).click()
        self.page.get_by_role("heading", name="Comparing", exact=False).wait_for()
        self._differences_only().wait_for()

    def compared_runs(self) -> list[str]:
        """On the page of a comparison: the runs' names, in the order of the columns."""
        return self.page.get_by_role("row", name="Run Name:").get_by_role("cell").all_inner_texts()

    def differing_parameters(self) -> dict[str, list[str]]:
        """On the page of a comparison: parameter -> its value in each run, for those that differ."""
        self._differences_only().check()
        panel = self._differences_only().locator("xpath=ancestor::*[.//table][1]")
        rows = panel.get_by_role("row").all()
        return {row.get_by_role("rowheader").inner_text(): row.get_by_role("cell").all_inner_texts() for row in rows}

    def scroll_to_parameters(self) -> None:
        """On the page of a comparison: the runs' names at the top, what differs below."""
        self.page.get_by_role("button", name="Run details").evaluate("part => part.scrollIntoView()")

    def open_metric(self, metric: str) -> None:
        """From the page of a comparison to that of one metric: a chart with a line a run."""
        self.page.get_by_role("main").get_by_role("link", name=metric, exact=True).click()
        self.page.get_by_role("heading", name=metric, exact=True, level=2).wait_for()

    def back_to_runs(self) -> None:
        """From the page of a comparison to the list, nothing selected."""
        self.page.get_by_role("main").get_by_role("link", name=EXPERIMENT, exact=True).click()
        self.page.get_by_role("heading", name="Runs", exact=True).wait_for()

    def back_to_comparison(self) -> None:
        """From a metric's page."""
        self.page.get_by_role("link", name="Comparing", exact=False).click()
        self._differences_only().wait_for()

    def fold_sidebar(self) -> None:
        """Make room: the page then has nearly the whole width."""
        self.page.get_by_role("button", name="Toggle sidebar").click()

    def show_charts(self, metrics: Iterable[str]) -> None:
        """From the list of runs to their charts, of these metrics only."""
        self.page.locator("label:has(input[value=CHART])").click()
        self.page.get_by_role("searchbox", name="Search metric charts").fill(f"^({'|'.join(metrics)})$")

    def group_by(self, parameter: str) -> list[str]:
        """Group the list's runs by a parameter's value, and fold the groups; their values, from the top."""
        self.page.get_by_role("button", name="Group by").click()
        self.page.get_by_role("menuitemcheckbox", name=parameter, exact=True).click()
        self.page.keyboard.press("Escape")
        groups = self.page.get_by_text("Group: ", exact=False)
        groups.first.wait_for()
        values: list[str] = []
        while len(values) < groups.count():  # each that is folded makes room for the next
            row = self.page.get_by_role("row").filter(has=groups).nth(len(values))
            values.append(groups.nth(len(values)).inner_text().removeprefix("Group: "))
            row.locator("[col-id='1'] span[role=button]").click()
        return values

    def wait_for_groups(self, metrics: Iterable[str], count: int) -> None:
        """Wait until each metric's chart has a line for each of `count` groups."""
        self.page.wait_for_function(GROUPS_ARE_DRAWN, arg=[list(metrics), count])

    def show_only(self, *names: str) -> None:
        """Beside the charts, close the eyes of all other runs; of several with one name the topmost stays."""
        wanted = set(names)
        for row in self.page.get_by_role("row").filter(has=self.page.locator("a[href*='/runs/']")).all():
            name = row.get_by_role("link").inner_text()
            if name in wanted:
                wanted.remove(name)
            else:
                row.locator("label:has(.is-visibility-toggle-checkbox)").click()  # its box itself is hidden

    def charts(self, metrics: Iterable[str], runs: Iterable[str]) -> dict[str, dict[str, Points]]:
        """Metric -> run -> (step, value) for every line drawn on the page.

        Waits until these metrics are drawn for exactly these runs; what is wrong after the page's timeout is wrong
        here.
        """
        with suppress(TimeoutError):  # the caller sees what is there, which says more
            self.page.wait_for_function(ARE_DRAWN, arg=[list(metrics), list(runs)])
        drawn: dict[str, dict[str, list[list[Any]]]] = self.page.evaluate(DRAWN)
        return {
            metric: {run: [(step, value) for step, value in points] for run, points in lines.items()}
            for metric, lines in drawn.items()
        }

    def _row(self, name: str) -> Locator:
        link = self.page.get_by_role("link", name=name, exact=True)
        return self.page.get_by_role("row").filter(has=link).first

    def _differences_only(self) -> Locator:
        return self.page.get_by_role("switch", name="Parameters - Show diff only")
