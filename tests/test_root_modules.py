"""What every room uses: remedies for words that aren't known, one line of a text, files that appear whole."""

import multiprocessing
from pathlib import Path

import pytest

from coderepairrl.errors import did_you_mean
from coderepairrl.files import whole, write_text
from coderepairrl.lines import one_line


def test_the_nearest_known_word_is_asked_for_as_the_user_would_write_it():
    known = ("train", "heldout")
    assert did_you_mean("trian", known, "known are train, heldout") == "did you mean 'train'?"
    assert did_you_mean("trian", known, "", written="jobs.{}".format) == "did you mean jobs.train?"
    assert did_you_mean("xyzzy", known, "known are train, heldout") == "known are train, heldout"
    assert did_you_mean("train", (), "nothing is known") == "nothing is known"


def test_likeness_says_what_counts_as_near():
    assert did_you_mean("tests", ["rests_of"], "no", likeness=0.4) == "did you mean 'rests_of'?"
    assert did_you_mean("tests", ["rests_of"], "no", likeness=0.9) == "no"


@pytest.mark.parametrize("text", ["a\n  b\tc\r\n", " a b c", ValueError("a\nb\n\nc"), "a\u2028b\x0cc"])
def test_one_line_has_single_spaces_alone(text):
    assert one_line(text) == "a b c"


def test_a_file_or_folder_has_its_name_when_the_block_is_through(tmp_path):
    (tmp_path / "file").write_text("old")
    with whole(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "file").read_text() == "old" and temporary.parent == tmp_path
    with whole(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(parents=True)
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "folder/inner").is_dir()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: None])
def test_of_a_block_that_raises_nothing_is_left_and_what_was_there_stays(make, tmp_path):
    (tmp_path / "name").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "name") as temporary:
        make(temporary)
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/first").touch()
    with pytest.raises(OSError), whole(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "second").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "first"]


def _write(path: Path, letter: str) -> None:
    for _ in range(50):
        write_text(path, letter * 100_000)


def test_of_several_writers_a_reader_sees_one_whole(tmp_path):
    path = tmp_path / "shared"
    write_text(path, "a" * 100_000)
    writers = [multiprocessing.get_context("fork").Process(target=_write, args=(path, letter)) for letter in "bc"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == 100_000 and len(set(text)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
