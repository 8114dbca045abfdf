import pytest

from relay.policy.calibration import Calibrations


def test_pairs_are_kept_per_model_and_channel():
    calibrations = Calibrations()
    calibrations.pair("gpt-5", "openai").prompt.observe(10_000, 15_000)
    assert calibrations.pair("gpt-5", "openai").prompt.apply(1000) > 1400
    assert calibrations.pair("gpt-5", "openai").output.apply(1000) == 1000
    assert calibrations.pair("gpt-5", "azure").prompt.apply(1000) == 1000
    assert calibrations.pair("gpt-5", "azure") is calibrations.pair("gpt-5", "azure")


def test_what_was_learnt_survives_export_and_load():
    learnt = Calibrations()
    learnt.pair("b", "x").output.observe(5000, 9000)
    learnt.pair("a", "x").prompt.observe(5000, 4000)
    rows = learnt.export()
    assert [row[:2] for row in rows] == [("a", "x"), ("b", "x")]
    restored = Calibrations()
    restored.load(rows)
    assert restored.export() == rows
    assert restored.pair("b", "x").output.apply(777) == learnt.pair("b", "x").output.apply(777)


def test_a_broken_row_is_refused():
    with pytest.raises(ValueError, match="calibration"):
        Calibrations().load([("a", "x", 0, 0, 1, 1)])
