"""Mistakes in YAML are named as a user sees them."""

import pytest

from worker.manifest.yaml import parse_yaml


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("job: a\n  output: b\n", "line 2: indented farther than the key above it"),
        ("job: a: b\n", "line 1: .*a value with a colon needs quotation marks"),
        ("data:\n  train: x\n val: y\n", "line 3: indented differently from the keys above it"),
        ("data:\n\ttrain: x\n", "line 2: a tab; indent with spaces"),
        ("optimizer: {lr: 1\n", "line 2: a comma is missing, or a bracket or brace is not closed"),
        (
            '{"job": "a"\n"lr": 1}',
            "line 2: a comma is missing, or a bracket or brace is not closed",
        ),
        (
            'output: "s3://runs/"ants\n',
            "line 1: text after a closing quotation mark or bracket",
        ),
        ("a: [1]]\n", "line 1: an unmatched closing bracket"),
        ("a: {b: 1}}\n", "line 1: an unmatched closing brace"),
        ('{"job": "a"}}', "line 1: an unmatched closing brace"),
        ("train: ]\n", "line 1: an unmatched closing bracket"),
        (
            "data:\n  train: d\n val\n",
            "line 3: text after .*, or indented differently from the keys",
        ),
        ('job: "a",\n', "line 1: a comma after the value; remove it"),
        ("job: a\noutput:s3://b/x\nx: 1\n", "line 3: the key before this line needs a colon and a"),
        ("job: {{ name }}\n", "line 1: nested braces, as in a template"),
        ("job: a\n---\njob: b\n", "line 2: a second document after `---`; keep one"),
        ('output: "C:\\data"\n', "line 1: a backslash in a double-quoted value; use single"),
        ("lr: [1, 2\njob: a\n", "line 2: a comma is missing, or a bracket or brace is not closed"),
        ('job: "a\n', "line 2: a quotation mark before this line is not closed"),
        (
            "groups:\n- match: *\n",
            r"line 2: a value that begins with \* or & needs quotation marks",
        ),
        ("job: a\njob: b\n", 'line 2: the key "job" appears twice; remove one of the two'),
    ],
)
def test_a_mistake_has_its_line_and_a_remedy(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_yaml(text)
