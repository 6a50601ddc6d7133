"""Prompts of our own and of other benchmarks' files."""

import json

import pytest

from jaxspec.measure import prompts


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "def f():"},
        {"question": "def f():", "answer": "42"},
        {"turns": ["def f():", "and now faster"], "category": "coding"},
        {"prompt": "def f():", "question": "why?", "turns": ["what?"]},
    ],
)
def test_a_record_is_a_prompt_a_question_or_a_first_turn(write, record):
    assert prompts.read(write(json.dumps(record))) == ["def f():"]


def test_prompts_keep_their_order_and_blank_lines_are_skipped(write):
    path = write(
        '{"prompt": "a"}', "", "  ", '{"question": "b"}', '{"turns": ["c"]}', ""
    )
    assert prompts.read(path) == ["a", "b", "c"]


def test_a_prompt_keeps_its_white_space(write):
    text = "def f():\n    \tpass\u2028\n"
    assert prompts.read(write(json.dumps({"prompt": text}))) == [text]
    assert prompts.read(write(json.dumps({"prompt": text}, ensure_ascii=False))) == [
        text
    ]


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        '{"text": "a"}',
        '{"prompt": ""}',
        '{"prompt": 3}',
        '{"turns": []}',
        '{"turns": [3]}',
        '["a"]',
        '"a"',
        "3",
    ],
)
def test_a_line_that_is_no_prompt_is_named(write, line):
    path = write('{"prompt": "a"}', "", line)  # blank lines count
    with pytest.raises(ValueError, match=r"prompts\.jsonl line 3 is no JSON object"):
        prompts.read(path)


@pytest.mark.parametrize("lines", [[""], ["", "  "]])
def test_a_file_without_prompts_is_refused(write, lines):
    with pytest.raises(ValueError, match="holds no prompts"):
        prompts.read(write(*lines))


def test_our_own_prompts_are_many_and_differ():
    own = prompts.read()
    assert len(own) >= 40
    assert len(set(own)) == len(own)


def test_the_digest_is_of_all_tokens():
    digests = {
        prompts.digest(p)
        for p in ([[1, 2], [3]], [[1], [2, 3]], [[12], [3]], [[1, 2, 3]], [[3], [1, 2]])
    }
    assert len(digests) == 5 and all(len(d) == 64 for d in digests)
    assert prompts.digest([[1, 2]]) == prompts.digest([(1, 2)])
