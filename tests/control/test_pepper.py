import os
from pathlib import Path

import pytest

from relay.control.pepper import PepperError, load_pepper


def test_it_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path):
    pepper = load_pepper(tmp_path, create=True)
    assert len(pepper.value) == 32
    assert (tmp_path / "pepper").stat().st_mode & 0o777 == 0o600
    assert load_pepper(tmp_path, create=False) == load_pepper(tmp_path, create=True) == pepper
    assert os.listdir(tmp_path) == ["pepper"]


def test_a_lost_pepper_is_not_replaced_behind_the_operators_back(tmp_path: Path):
    with pytest.raises(PepperError, match="missing"):
        load_pepper(tmp_path, create=False)
    assert not os.listdir(tmp_path)


def test_a_rest_of_a_crash_is_no_obstacle(tmp_path: Path):
    (tmp_path / "pepper.new").write_text("1 00")
    assert load_pepper(tmp_path, create=True) == load_pepper(tmp_path, create=False)


@pytest.mark.parametrize("text", ["", "1", "x 00", "1 zz", "1 00ff", "0 " + "00" * 32, "\xff" * 9])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str):
    (tmp_path / "pepper").write_text(text)
    (tmp_path / "pepper").chmod(0o600)
    with pytest.raises(PepperError, match="damaged"):
        load_pepper(tmp_path, create=True)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path):
    load_pepper(tmp_path, create=True)
    (tmp_path / "pepper").chmod(0o640)
    with pytest.raises(PepperError, match="0600"):
        load_pepper(tmp_path, create=True)


def test_it_does_not_show_itself(tmp_path: Path):
    pepper = load_pepper(tmp_path, create=True)
    assert pepper.value.hex() not in f"{pepper} {pepper!r} {[pepper]}"
    assert repr(pepper.value) not in f"{pepper} {pepper!r} {[pepper]}"
