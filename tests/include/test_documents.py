from __future__ import annotations

import pytest

from include.documents import read_json, read_text, read_yaml
from include.errors import ConfigurationError


@pytest.mark.parametrize(
    ("read", "content", "says"),
    [
        (read_yaml, b"a: [\n", "no YAML: line 2, column 1: "),
        (read_yaml, b"a: \x00\n", "no YAML: "),
        (read_yaml, b"{1: [], []: 1}\n", "no YAML: line 1, column "),
        (read_yaml, b"!!python/object:os.system {}\n", "no YAML: line 1, column 1: could not determine"),
        (read_json, b"{", "no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (read_json, b"[" * 100_000, "no JSON: "),
        (read_text, b"abc\xff", "not UTF-8: invalid start byte at byte 3"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_with_a_remedy(tmp_path, read, content, says):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        read(path, "the file")
    message = str(error.value)
    assert message.startswith(f"the file cannot be read ({says}") and message.endswith("): correct the file")
    assert "\n" not in message


def test_a_file_that_is_not_there_says_so(tmp_path):
    for path, says in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigurationError, match=rf"the file cannot be read \({says}"):
            read_yaml(path, "the file")


def test_what_can_be_read_is_what_it_holds(tmp_path):
    (tmp_path / "a").write_text('{"ä": [1, 2.5, null]}', encoding="utf-8")
    assert read_yaml(tmp_path / "a", "a") == read_json(tmp_path / "a", "a") == {"ä": [1, 2.5, None]}
