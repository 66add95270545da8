"""A decision as values for a record: JSON, parameters, metrics and the verdict."""

import hashlib
import json
import math
from typing import Any

from reprogpt.decide.decision import Decision
from reprogpt.decide.report import report, verdicts
from reprogpt.decide.sequential import ALPHA
from reprogpt.tracking.decisions import DecisionRecord


def decision_record(decision: Decision) -> DecisionRecord:
    """What is kept of a decision."""
    question = decision.question
    table = _table(decision)
    run_ids = sorted(run["run_id"] for level in table["levels"] for run in level["runs"])
    metrics: dict[str, float] = {}
    for comparison in decision.comparisons:
        name = "-".join(comparison.level)
        low, high = comparison.interval
        found = {"difference": comparison.mean, "low": low, "high": high, "pairs": comparison.num_pairs}
        metrics |= {f"{key}/{name}": float(value) for key, value in found.items() if math.isfinite(value)}
    return DecisionRecord(
        name=f"{' and '.join(question.keys)} by {question.metric}",
        keys=question.keys,
        digest=hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest(),
        params={
            "key": ",".join(question.keys),
            "metric": question.metric,
            "higher_is_better": str(question.higher_is_better).lower(),
            "baseline": ",".join(decision.baseline),
            "alpha": str(ALPHA),
        },
        metrics=metrics,
        verdict="\n".join(verdicts(decision)),
        run_ids=run_ids,
        table=table,
        report="\n".join(report(decision)) + "\n",
    )


def _table(decision: Decision) -> dict[str, Any]:
    """Values and comparisons of every level; numbers that are not finite are null."""
    levels = [
        {
            "level": list(summary.level),
            "mean": _finite(summary.mean),
            "std": _finite(summary.deviation),
            "num_failed": summary.num_failed,
            "runs": [
                {"seed": seed, "run_id": one.run.id, "value": one.value}
                for seed, one in sorted(decision.group.observations[summary.level].items())
            ],
        }
        for summary in decision.summaries
    ]
    comparisons = [
        {
            "level": list(one.level),
            "against": list(one.against),
            "num_pairs": one.num_pairs,
            "differences": {str(seed): value for seed, value in one.differences.items()},
            "mean": _finite(one.mean),
            "interval": [_finite(end) for end in one.interval],
            "fixed_interval": [_finite(end) for end in one.fixed_interval],
            "p": one.p,
            "by_signs": one.by_signs,
            "identical": one.identical,
            "decided": one.decided,
        }
        for one in decision.comparisons
    ]
    return {
        "keys": list(decision.question.keys),
        "metric": decision.question.metric,
        "higher_is_better": decision.question.higher_is_better,
        "baseline": list(decision.baseline),
        "best": list(decision.best),
        "plateau": [list(level) for level in decision.plateau],
        "inputs": decision.group.inputs,
        "levels": levels,
        "comparisons": comparisons,
        "verdicts": verdicts(decision),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
