"""Files are written whole or not at all."""

import os
import stat
import threading

import pytest

from idmm_fast.files import check_target, first_free, load_or_compute, replacing, write_json, write_text


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".tmp"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_once_have_temporary_names_of_their_own(tmp_path):
    names, meet = [], threading.Barrier(4)

    def write(text):
        with replacing(tmp_path / "a.txt") as temporary:
            names.append(temporary.name)
            meet.wait(10)
            temporary.write_text(text)

    threads = [threading.Thread(target=write, args=(str(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 4
    assert (tmp_path / "a.txt").read_text() in {"0", "1", "2", "3"}
    with replacing(tmp_path / "a.txt", unique=False) as temporary:
        temporary.write_text("alone")
        assert temporary.name == "a.txt.tmp"


def test_others_may_read_what_is_written(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "new" / "a.txt", "text")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new" / "a.txt").stat().st_mode) == 0o644


def test_a_result_is_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"top1": 50.0}

    assert load_or_compute(tmp_path / "a.json", compute) == {"top1": 50.0}
    assert load_or_compute(tmp_path / "a.json", compute) == {"top1": 50.0}
    assert calls == [1]
    write_json(tmp_path / "a.json", [1, 2])
    assert load_or_compute(tmp_path / "a.json", compute) == [1, 2]


def test_the_first_free_name(tmp_path):
    assert first_free(tmp_path / "aside") == tmp_path / "aside_1"
    (tmp_path / "aside_1").mkdir()
    assert first_free(tmp_path / "aside") == tmp_path / "aside_2"


def test_a_file_that_can_not_be_written_is_refused_by_its_own_name(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    wrong = {
        tmp_path / "folder.csv": "folder.csv is a folder; name a file",
        tmp_path / "file" / "a.csv": "a.csv can't be written: .*file is no folder",
        tmp_path / "file" / "deep" / "a.csv": "a.csv can't be written: Not a directory",
        tmp_path / ("a" * 250 + ".csv"): "aaa.csv can't be written: File name too long",
    }
    for path, said in wrong.items():
        with pytest.raises(OSError, match=said):
            check_target(path)
    check_target(tmp_path / "new" / "a.csv")
    (tmp_path / "new" / "b.csv").write_text("old")
    check_target(tmp_path / "new" / "b.csv")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b.csv"]
    assert (tmp_path / "new" / "b.csv").read_text() == "old"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc")
def test_a_folder_that_takes_no_files_is_told_before_the_work():
    with pytest.raises(OSError, match=r"^/proc/a\.csv can't be written: [\w ]+$"):
        check_target("/proc/a.csv")
