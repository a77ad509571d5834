"""Documents are written whole or not at all, and a file that cannot be one is refused with its reason."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from apportion.documents import MAX_DEPTH, MAX_DOCUMENT_BYTES, read_document, replace_file, write_document
from apportion.errors import InputError


class Entry(BaseModel):
    """One layer of the small document below."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    loss: float


class Sheet(BaseModel):
    """A document with the kinds of field that profiles and plans have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    entries: tuple[Entry, ...] = ()
    note: str | None = None
    counts: dict[str, int] = {}


class Tree(BaseModel):
    """A document that may be nested to any depth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inner: list[Tree] = []


finite = st.floats(allow_nan=False, allow_infinity=False)
sheets = st.builds(
    Sheet,
    title=st.text(),
    entries=st.lists(st.builds(Entry, name=st.text(), loss=finite), max_size=4).map(tuple),
    note=st.none() | st.text(),
    counts=st.dictionaries(st.text(), st.integers(-(2**200), 2**200), max_size=3),
)


def read_sheet(path: Path, text: str | bytes) -> Sheet:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_document(path, Sheet, "sheet")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sheet.json"


# --- writing ------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sheet=sheets)
def test_what_is_written_reads_back_equal(path: Path, sheet: Sheet) -> None:
    write_document(path, sheet)
    assert read_document(path, Sheet, "sheet") == sheet


def test_writing_again_replaces_the_document_and_leaves_nothing_else(path: Path) -> None:
    write_document(path, Sheet(title="first"))
    write_document(path, Sheet(title="second"))
    assert read_document(path, Sheet, "sheet").title == "second"
    assert list(path.parent.iterdir()) == [path]


def test_missing_folders_are_created(tmp_path: Path) -> None:
    path = tmp_path / "run" / "charts" / "sheet.json"
    write_document(path, Sheet(title="deep"))
    assert path.is_file()


def test_a_written_file_has_the_permissions_of_any_new_file(path: Path) -> None:
    write_document(path, Sheet(title="shared"))
    ordinary = path.with_name("ordinary")
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("interruption", [RuntimeError("stopped"), KeyboardInterrupt("stopped")])
@pytest.mark.parametrize("earlier", [None, "old"])
def test_an_interrupted_write_leaves_the_file_as_it_was(
    path: Path, interruption: BaseException, earlier: str | None
) -> None:
    if earlier is not None:
        path.write_text(earlier)

    def write_half() -> None:
        with replace_file(path) as temporary:
            temporary.write_text("half of the new")
            raise interruption

    with pytest.raises(type(interruption), match="stopped"):
        write_half()
    assert [file.read_text() for file in path.parent.iterdir()] == ([] if earlier is None else [earlier])


def test_readers_see_the_old_file_until_the_new_one_is_whole(path: Path) -> None:
    path.write_text("old")
    with replace_file(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocking = tmp_path / "file"
    blocking.write_text("not a folder")
    with pytest.raises(InputError, match=r"cannot write .*file/sheet\.json: .*choose another output folder"):
        write_document(blocking / "sheet.json", Sheet(title="lost"))
    assert list(tmp_path.iterdir()) == [blocking]


def test_a_folder_in_the_place_of_the_file_is_an_error_and_nothing_is_left(path: Path) -> None:
    path.mkdir()
    with pytest.raises(InputError, match=r"cannot write .*sheet\.json: Is a directory"):
        write_document(path, Sheet(title="lost"))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_document_with_a_number_that_is_not_finite_is_not_written(path: Path, value: float) -> None:
    with pytest.raises(InputError, match="holds NaN or an infinity"):
        write_document(path, Sheet(title="bad", entries=(Entry(name="conv1", loss=value),)))
    assert not path.exists()


# --- reading ------------------------------------------------------------------------------------------------


def test_a_missing_document_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read sheet .*none\.json: No such file"):
        read_document(tmp_path / "none.json", Sheet, "sheet")
    with pytest.raises(InputError, match=r"cannot read sheet .*: Is a directory"):
        read_document(tmp_path, Sheet, "sheet")


@pytest.mark.parametrize(
    "text", ["", "{", '{"title": "cut', "title: yes", '{"title": "a"} extra', "\ufeff{}"]
)
def test_text_that_is_not_json_is_refused(path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"sheet .*sheet\.json is not JSON: "):
        read_sheet(path, text)


def test_bytes_that_are_not_utf8_are_refused(path: Path) -> None:
    with pytest.raises(InputError, match="it is not UTF-8 text"):
        read_sheet(path, b'{"title": "\xff\xfe"}')


def test_a_file_of_100_megabytes_is_refused(path: Path) -> None:
    path.touch()
    os.truncate(path, 100 * 10**6)
    with pytest.raises(InputError, match=f"has more than {MAX_DOCUMENT_BYTES:,} bytes"):
        read_document(path, Sheet, "sheet")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(InputError, match="has more than"):
        read_document(Path("/dev/zero"), Sheet, "sheet")


@pytest.mark.parametrize(
    "text", ["[" * 1000 + "]" * 1000, '{"a":' * 1000 + "1" + "}" * 1000, "[" * 1000, "[" * 10**6]
)
def test_a_thousand_levels_are_refused(path: Path, text: str) -> None:
    with pytest.raises(InputError, match=f"nested more than {MAX_DEPTH} levels deep"):
        read_sheet(path, text)


def test_nesting_is_allowed_up_to_the_stated_depth_and_not_beyond(path: Path) -> None:
    tree = Tree()
    # A tree is an object with a list in it: two levels each, the innermost too.
    for _ in range(MAX_DEPTH // 2 - 1):
        tree = Tree(inner=[tree])
    write_document(path, tree)
    assert read_document(path, Tree, "tree") == tree
    write_document(path, Tree(inner=[tree]))
    with pytest.raises(InputError, match="levels deep"):
        read_document(path, Tree, "tree")


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(title=st.text(alphabet='[]{}"\\' + string.ascii_letters, max_size=300))
def test_brackets_and_quotes_inside_a_string_do_not_count_as_depth(path: Path, title: str) -> None:
    title = "[{" * MAX_DEPTH + title
    assert read_sheet(path, json.dumps({"title": title})).title == title


def test_many_siblings_are_not_depth(path: Path) -> None:
    entries = [{"name": str(index), "loss": 0.5} for index in range(1000)]
    assert len(read_sheet(path, json.dumps({"title": "wide", "entries": entries})).entries) == 1000


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_does_not_have_are_refused(path: Path, constant: str) -> None:
    with pytest.raises(InputError, match=f"holds {constant}, which is not a number in JSON"):
        read_sheet(path, f'{{"title": "a", "entries": [{{"name": "conv1", "loss": {constant}}}]}}')


@pytest.mark.parametrize("number", ["1e999", "-1.5E+400", "9" * 399 + ".0"])
def test_a_number_too_large_for_a_float_does_not_become_infinite(path: Path, number: str) -> None:
    with pytest.raises(InputError, match="too large for a 64-bit float"):
        read_sheet(path, f'{{"title": "a", "entries": [{{"name": "conv1", "loss": {number}}}]}}')


def test_an_integer_of_5000_digits_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="holds an integer of 5,000 digits, at most 400"):
        read_sheet(path, f'{{"title": "a", "counts": {{"b": {"1" * 5000}}}}}')


def test_a_field_given_twice_is_refused_at_any_depth(path: Path) -> None:
    with pytest.raises(InputError, match="gives the field 'title' twice"):
        read_sheet(path, '{"title": "a", "title": "b"}')
    with pytest.raises(InputError, match="gives the field 'conv1' twice"):
        read_sheet(path, '{"title": "a", "counts": {"conv1": 1, "conv1": 2}}')


@pytest.mark.parametrize("text", [r'{"title": "\ud800"}', r'{"title": "a", "\uDFFF": 1}'])
def test_half_of_a_surrogate_pair_is_refused(path: Path, text: str) -> None:
    with pytest.raises(InputError, match="holds a broken character"):
        read_sheet(path, text)


def test_a_whole_surrogate_pair_is_one_character(path: Path) -> None:
    assert read_sheet(path, r'{"title": "\ud83d\ude00"}').title == "\U0001f600"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], "document: Input should be a valid dictionary"),
        ({}, "title: Field required"),
        ({"title": 3}, "title: Input should be a valid string"),
        ({"title": "a", "entries": 3}, "entries: Input should be a valid tuple"),
        ({"title": "a", "entries": [{"name": "conv1"}]}, "entries.0.loss: Field required"),
        (
            {"title": "a", "entries": [{"name": "b", "loss": "x"}]},
            "entries.0.loss: Input should be a valid number",
        ),
        ({"title": "a", "surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"title": "a", "counts": {"conv1": 1.5}}, "counts.conv1: Input should be a valid integer"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_wrong(path: Path, document: object, problem: str) -> None:
    with pytest.raises(InputError, match=r"sheet\.json is not valid: " + re.escape(problem)):
        read_sheet(path, json.dumps(document))


def test_at_most_three_problems_are_listed(path: Path) -> None:
    entries = [{"name": "a"}] * 20
    with pytest.raises(InputError, match="Field required") as caught:
        read_sheet(path, json.dumps({"title": "a", "entries": entries}))
    assert str(caught.value).count("Field required") == 3


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.binary(max_size=60) | st.text(alphabet='{}[]":,0123456789.eE-+\\utrnalsf ', max_size=60))
def test_no_text_whatever_raises_anything_but_an_input_error(path: Path, text: str | bytes) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(read_sheet(path, text), Sheet)
