"""What a refusal says, whatever the names and texts that it quotes."""

import pickle

from multibox.errors import DataError, MultiboxError, StorageError


def test_names_and_texts_of_others_do_not_leave_their_line() -> None:
    error = DataError(
        "its name is '\x1b[31m'\n  and \x85",
        kind="unreadable",
        file="a\nerror: all is well",
        position="\u202e\x00",
    )
    assert str(error) == (
        "a\\nerror: all is well, \\u202e\\x00: its name is '\\x1b[31m'\n  and \\x85."
    )
    assert (error.file, error.position) == ("a\nerror: all is well", "\u202e\x00")


def test_a_reason_of_any_length_fits_a_page() -> None:
    error = StorageError("x" * 1_000_000, remedy="Look")
    assert str(error).endswith("x [and so on]. Look.")
    assert len(str(MultiboxError("x", position="y" * 100_000))) < 9_000
    assert len(str(error)) < 9_000
    assert pickle.loads(pickle.dumps(error)).reason == error.reason
