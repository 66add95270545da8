"""Values from a store, which may be anyone's: one form for each type, and None for what is no number."""

import math

import pytest

from reprogpt.decide.stored_values import as_number, as_seed, canonical, finite_metric, level_order


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("peak_lr", ("5e-4", "0.0005", 0.0005), "0.0005"),
        ("n_epochs", ("1.0", "1", 1), "1"),
        ("orig_book_version", ("True", "true", "TRUE", True), "true"),
        ("max_norm", ("None", None, "null", "~", ""), "null"),
        ("max_norm", ("1", 1.0), "1"),
        ("init_from", ("", ""), '""'),
        ("eval_max_tokens", ("1e3", 1000), "1000"),
        ("peak_lr", ("1_0",), "1_0"),
        ("lr_decay", ("none",), "none"),
        ("start_context", ("None",), "None"),
        ("start_context", ("1e3",), "1e3"),
        ("start_context", ("TRUE",), "TRUE"),
        ("corpus.sha256", ("123e4",), "123e4"),
        ("torch", ("2.10",), "2.10"),
    ],
)
def test_a_value_has_one_form_for_the_type_of_its_parameter(
    key: str, values: tuple[object, ...], expected: str
) -> None:
    assert {canonical(key, value) for value in values} == {expected}
    assert canonical(key, expected) == expected


def test_what_is_no_number_is_none() -> None:
    assert [as_number(text) for text in ("1e-3", "inf", "nan", "1_000", "a", "")] == [0.001, *[None] * 5]
    texts = ["42", "0", str(2**63 - 1), str(2**63), "-1", "42.5", "None", "1e3", "", "9" * 5000, "٣"]
    assert [as_seed(text) for text in texts] == [42, 0, 2**63 - 1, *[None] * 8]
    assert as_seed(7) == 7 and as_seed(None) is None


def test_a_metric_that_a_database_holds_for_infinity_is_none() -> None:
    assert finite_metric(-6.5) == -6.5
    for value in (None, math.nan, math.inf, -math.inf, 1.7976931348623157e308, -1.7976931348623157e308):
        assert finite_metric(value) is None


def test_levels_are_in_order_of_numbers_before_texts() -> None:
    levels = [("b",), ("10",), ("9",), ("a",), ("0.001",)]
    assert sorted(levels, key=level_order) == [("0.001",), ("9",), ("10",), ("a",), ("b",)]
