"""Configurations that ask for more than a configuration can need: one sentence, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import faithad
from faithad.config.audit import load_study_or_audit
from faithad.config.study import load_study, parse_study
from faithad.errors import ConfigError, StudyError
from faithad.report.reading import read_settings

SMALLEST = "name: s\nroot: runs/s\ndata: {train: [a], test: [b]}\n"
LISTS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 11))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 11))


def refusal(text: str) -> str:
    """What is said of a configuration; asserts that it takes no longer than a user notices."""
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        parse_study(text, name="x.yaml")
    assert time.process_time() - started < 2, "1 s on a quiet machine"
    return str(caught.value)


@pytest.mark.parametrize("text", [LISTS, MERGES, SMALLEST + "".join(f"key{n}: 1\n" for n in range(100_000))])
def test_more_values_than_a_configuration_holds_are_refused_at_once(text: str) -> None:
    assert refusal(text).startswith("x.yaml holds more than 10,000 keys and values, with aliases counted as what they")


def test_an_alias_of_moderate_size_is_no_problem() -> None:
    study = parse_study(f"{SMALLEST}models: &m [ae]\n", name="x.yaml")
    assert parse_study("name: &n s\nroot: *n\ndata: {train: &d [a], test: *d}\nmodels: [ae]", name="x.yaml") == (
        study.model_copy(update={"root": "s", "data": study.data.model_copy(update={"test": ("a",)})})
    )


def test_a_section_may_replace_what_it_merges() -> None:
    text = f"{SMALLEST}train: &t {{epochs: 2, patience: 3}}\nsearch: {{}}\n"
    assert "twice" not in refusal(f"{text}audit: {{<<: *t, epochs: 3}}")


@pytest.mark.parametrize("number", ["0x" + "f" * 200_000, "9" * 200_000, "1" + ":1" * 100_000])
def test_a_number_of_thousands_of_digits_is_no_value(number: str) -> None:
    assert refusal(f"{SMALLEST}seeds: [{number}]\n") == (
        f"x.yaml is not valid YAML: line 4 holds a number of {len(number):,} digits"
    )


def test_ten_unknown_keys_are_told_and_the_others_counted() -> None:
    lines = refusal(SMALLEST + "".join(f"key{n}: 1\n" for n in range(4_000)) + "seeds: []\n").splitlines()
    assert lines[0] == "x.yaml has 4,001 problems:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        *(f"key{n}" for n in range(10)),
        "seeds",
        "and 3,990 more unknown keys",
    ]


def test_ten_repeated_keys_are_told_and_the_others_counted() -> None:
    lines = refusal(SMALLEST + "name: s\n" * 4_000).splitlines()
    assert len(lines) == 2 + 10
    assert lines[-1].strip() == "and 3,990 more repeated keys"


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(f"{SMALLEST}train: {{epochs: {'x' * 100_000}}}\n")) < 400


def test_a_large_file_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(SMALLEST + "#" * 1_000_000)
    with pytest.raises(ConfigError, match="is above 1,000,000 bytes, which is too large for a configuration"):
        load_study(str(path))
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="is above 1,000,000 bytes"):
        load_study_or_audit(str(path))


def test_a_configuration_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(SMALLEST.encode() + b"# gr\xfc\xdfe\n")
    told = r"study\.yaml is no text in UTF-8 \(.*\)\. Save it as UTF-8\."
    with pytest.raises(ConfigError, match=told):
        load_study(str(path))
    with pytest.raises(ConfigError, match=told):
        load_study_or_audit(str(path))
    with pytest.raises(StudyError, match=told):
        read_settings(str(path))
    with pytest.raises(ConfigError, match=told):
        faithad.open_study(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load_study(str(path)).name == "s"
