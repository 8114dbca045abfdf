from relay import records
from relay.storage.rows import CallDetails, CallLine, CallRow, EventRow


def test_rows_mirror_the_columns_of_records():
    assert CallRow.__struct_fields__ == (*records.CALL_COLUMNS, "details", "lines")
    assert CallDetails.__struct_fields__ == records.CALL_DETAILS
    assert CallLine.__struct_fields__ == records.CALL_LINE
    assert EventRow.__struct_fields__ == ("id", *records.EVENT_COLUMNS)


def test_positions_name_their_fields():
    fields = records.CALL_RECORD_FIELDS
    assert fields[records.C_ID] == "id"
    assert fields[records.C_ACCOUNT] == "account_id"
    assert fields[records.C_ORGANISATION] == "organisation_id"
    assert fields[records.C_KEY] == "key_id"
    assert fields[records.C_MODEL] == "model"
    assert fields[records.C_ERROR_CODE] == "error_code"
    assert fields[records.C_INPUT_TOKENS] == "input_tokens"
    assert fields[records.C_COST_NANO] == "cost_nano"
    assert fields[records.C_WRITE_OFF_NANO] == "write_off_nano"
    assert fields[records.C_DAY] == "day"


def test_time_and_day_of_a_call_come_from_its_id():
    midnight_ms = 20_000 * records.MS_PER_DAY
    call_id = records.first_call_id(midnight_ms)
    assert records.call_time_ms(call_id + 5) == midnight_ms
    assert records.call_day(call_id) == 20_000
    assert records.call_day(call_id - 1) == 19_999
