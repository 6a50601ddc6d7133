"""The command line: objects on standard output, one line of error, help that teaches."""

import io
import json
import sys

import pytest

import folder
import tiny
from jaxspec.__main__ import COMMANDS, main, parser
from jaxspec.bench.command import BENCHMARKS
from jaxspec.measure import published
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.tune.command import SUBJECTS

PROMPT = "def add(a, b):\n"
FEW = ["--max-tokens", "12"]
FIELDS = {
    "text",
    "tokens",
    "finish_reason",
    "prompt_tokens",
    "generated_tokens",
    "target_calls",
    "block_efficiency",
    "accepted_per_step",
    "seconds",
    "tokens_per_second",
}


@pytest.fixture
def generate(capsys):
    """Runs `jaxspec generate --json` on a small model."""

    def run(*arguments):
        model = ["--model", str(folder.make()), "--draft-model", str(folder.make("M"))]
        status = main(["generate", *model, *FEW, "--json", *arguments])
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        return json.loads(out)

    return run


def error_of(capsys, *arguments):
    status = main(list(arguments))
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert err.startswith(f"jaxspec {arguments[0]}: ") and err.count("\n") == 1
    return err


def test_generate_prints_one_object(generate):
    record = generate("--prompt", PROMPT)
    assert set(record) == FIELDS
    assert record["generated_tokens"] == len(record["tokens"]) == 12
    assert record["target_calls"] <= 12
    efficiency = record["generated_tokens"] / record["target_calls"]
    assert record["block_efficiency"] == pytest.approx(efficiency)
    assert record["accepted_per_step"] == pytest.approx(efficiency - 1)
    tokenizer = folder.tokenizer()
    assert record["text"] == tokenizer.decode(record["tokens"])
    assert record["prompt_tokens"] == len(tokenizer.encode(PROMPT).ids)


@pytest.mark.parametrize(
    "options",
    [
        ("--drafter", "ngram:chain:3"),
        ("--drafter", "suffix:6"),
        ("--drafter", "ngram:6", "--temperature", "0.8", "--top-k", "9"),
        ("--drafter", "model:2,1", "--temperature", "0.8"),
        ("--drafter", "model", "--rollback", "lazy", "--batch", "2"),
    ],
)
def test_compare_says_that_the_texts_agree(generate, options):
    record = generate("--prompt", PROMPT, "--compare", *options)
    assert set(record) >= FIELDS | {"autoregressive", "speedup"}
    baseline = record["autoregressive"]
    assert set(baseline) == {"tokens_per_second", "identical", "near_ties"}
    assert baseline["identical"] is True and baseline["near_ties"] == 0
    speed = record["tokens_per_second"] / baseline["tokens_per_second"]
    assert record["speedup"] == pytest.approx(speed)


def test_batches_have_texts_of_their_own(generate):
    record = generate("--prompt", PROMPT, "--batch", "3", "--temperature", "1.5")
    assert len(record["texts"]) == 3 and len(set(record["texts"])) > 1
    assert record["generated_tokens"] == 36


def test_seeds_make_texts(generate):
    options = ("--prompt", PROMPT, "--temperature", "1.5")
    texts = [generate(*options, "--seed", seed)["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_the_prompt_may_be_a_file_or_standard_input(generate, tmp_path, monkeypatch):
    expected = generate("--prompt", PROMPT)["tokens"]
    file = tmp_path / "prompt.py"
    file.write_text(PROMPT)
    assert generate("--prompt-file", str(file))["tokens"] == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert generate("--prompt", "-")["tokens"] == expected


def test_no_drafter_is_autoregressive(generate):
    record = generate("--prompt", PROMPT, "--drafter", "none")
    assert record["target_calls"] == 12 and record["block_efficiency"] == 1.0


def test_text_streams_to_the_terminal(capsys):
    model = ["--model", str(folder.make())]
    assert main(["generate", *model, *FEW, "--prompt", PROMPT, "--compare"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(PROMPT) and "\x1b" not in out + err
    assert "green" not in err.lower()  # there are no colours
    for word in ("target calls", "block efficiency", "speedup", "agree"):
        assert word in err and word not in out
    assert err.startswith(f"Compiling {folder.make()}: the pass over the prompt")
    assert "Compiling the autoregressive loop" in err


def test_streamed_text_is_the_text(capsys, generate):
    expected = generate("--prompt", PROMPT)["text"]
    assert (
        main(["generate", "--model", str(folder.make()), *FEW, "--prompt", PROMPT]) == 0
    )
    out, _ = capsys.readouterr()
    assert out == PROMPT + expected + "\n"


@pytest.mark.parametrize(
    "options, message",
    [
        (("--prompt", ""), "empty"),
        (("--prompt-file", "no/such/file"), "no/such/file"),
        (("--temperature", "-1"), "--temperature must not be negative"),
        (("--top-p", "0"), "--top-p must be in (0, 1]"),
        (("--max-tokens", "0"), "--max-tokens must be positive"),
        (("--batch", "0"), "--batch must be positive"),
        (("--drafter", "ngram:wide"), "no shape of ngram"),
        (("--drafter", "ngram:3,2"), "no shape of ngram"),
        (("--drafter", "model:0,1"), "no shape of model"),
        (("--drafter", "model", "--draft-model", "nowhere"), "nowhere"),
        (("--top-k", str(2**40)), "--top-k must be below 2**31"),
        (("--top-k", "-1"), "--top-k must not be negative"),
        (("--seed", str(2**32)), "--seed must be below 2**32"),
        (("--max-tokens", str(2**31)), "--max-tokens must be below 2**31"),
        (("--max-tokens", str(2**31 - 1)), "--max-tokens must be at most"),
        (("--batch", str(2**31)), "--batch must be below 2**31"),
        (("--drafter", "sequoia:9999"), "no shape of sequoia"),
        (("--drafter", "model:chain:1025"), "up to 1024"),
        (("--drafter", "model:40,40"), "no shape of model"),
        (("--drafter", "rsd-s:32x32"), "no shape of rsd-s"),
        (("--stop", ""), "--stop must not be empty"),
        (("--system", "x"), "--chat"),
        (("--chat",), "has no chat template"),
        (("--prompt", "\udcff"), "--prompt is not UTF-8"),
    ],
)
def test_bad_input_is_one_line(capsys, options, message):
    prompt = [] if options[0].startswith("--prompt") else ["--prompt", "x"]
    arguments = ["generate", "--model", str(folder.make()), *prompt, *options]
    assert message in error_of(capsys, *arguments)


def test_a_draft_model_of_another_tokenizer_is_refused(capsys):
    other = folder.make("M", text="while True:\n    pass\n" * 5)
    message = error_of(
        capsys,
        "generate",
        "--model",
        str(folder.make()),
        "--drafter",
        "model",
        "--draft-model",
        str(other),
    )
    assert "tokenizer is not the target's" in message


def test_unknown_names_are_refused(capsys):
    assert "nowhere" in error_of(capsys, "generate", "--model", "nowhere")
    assert "Unknown drafter" in error_of(capsys, "generate", "--drafter", "magic")
    for arguments in (["fly"], []):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code != 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *(f"bench {name}" for name in BENCHMARKS),
        *(f"tune {name}" for name in SUBJECTS),
    ],
)
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([*command.split(), "--help"])
    out, _ = capsys.readouterr()
    assert stop.value.code == 0
    assert "usage: jaxspec" in out and len(out) > 300


def test_info_prints_one_object(capsys):
    assert main(["info", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    serving = {"cpu": "xla", "tpu": "pallas_tpu", "cuda": "pallas_gpu"}
    assert record["kernels"]["tree_ssd"] == serving
    assert "reference" in record["implementations"]["tree_ssd"]
    assert record["rollbacks"]["auto is"] == "replay"
    assert "falcon_h1" in record["families"]
    assert main(["info"]) == 0
    out, longest = capsys.readouterr().out, ", ".join(record["families"])
    assert "tree_scan" in out and len(longest) > 80 and longest in out  # not cut


def test_bench_decode_prints_one_object_and_a_picture(capsys, tmp_path):
    prompts, plot = tmp_path / "prompts.jsonl", tmp_path / "plot.png"
    lines = [{"prompt": PROMPT}, {"question": "a + b"}, {"turns": ["def sub", "x"]}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["bench", "decode", "--model", str(folder.make()), *FEW, "--json"]
    arguments += ["--prompts", str(prompts), "--plot", str(plot), "--repeats", "1"]
    arguments += ["--drafter", "ngram:6", "--drafter", "ngram:chain:3", "--batch", "2"]
    arguments += ["--rollback", "lazy", "joint"]
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(r["temperature"], r["name"], r["rollback"]) for r in record["rows"]] == [
        (t, name, rollback)
        for t in (0.0, 0.8)
        for name in ("ngram:6", "ngram:chain:3")
        for rollback in ("lazy", "joint")
    ]
    for row in record["rows"]:
        assert (
            row["texts"] == 3 and row["identical"] == 3
        )  # the last batch is filled up
        assert row["different"] == 0
        assert row["tokens"] == 36 and row["speedup"] > 0
    assert plot.stat().st_size > 5000


def test_bench_rollback_prints_one_object(capsys):
    arguments = ["bench", "rollback", "--model", str(folder.make()), "--json"]
    arguments += ["--batch", "1", "--nodes", "4", "--repeats", "1"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = [row["name"] for row in rows]
    assert names[:3] == ["AR", "products", "products"]
    assert set(names[3:]) == {"snapshot", "replay", "lazy", "joint"}
    assert all(row["milliseconds"] > 0 for row in rows)


@pytest.fixture
def tiny_shape(monkeypatch):
    """A published model that is not."""
    monkeypatch.setitem(published.MODELS, "tiny", tiny.config("MM*"))


def test_bench_verify_prints_one_object(capsys, tiny_shape):
    arguments = ["bench", "verify", "--model", "tiny", "--json", "--batch", "2"]
    arguments += ["--nodes", "1", "6", "--steps", "2", "--repeats", "1"]
    assert main([*arguments, "--context", "16", "--rollback", "lazy", "joint"]) == 0
    record = json.loads(capsys.readouterr().out)
    found = [(row["rollback"], row["nodes"]) for row in record["rows"]]
    trees = [(name, nodes) for name in ("lazy", "joint") for nodes in (1, 6)]
    assert found == [("AR", 1), *trees]
    assert all(row["milliseconds"] > 0 for row in record["rows"])
    assert 0 < record["rows"][0]["of_copy"]


def test_bench_kernels_prints_one_object(capsys, tiny_shape):
    arguments = ["bench", "kernels", "--model", "tiny", "--json", "--batch", "1", "2"]
    arguments += ["--layers", "2", "--nodes", "6", "--max-path", "4", "--ring", "8"]
    arguments += ["--cycles", "1", "--repeats", "1", "--dtype", "float32"]
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    names = [(row["rollback"], row["batch"]) for row in record["rows"]]
    assert names == [(name, batch) for batch in (1, 2) for name in ROLLBACKS]
    ops = {error["op"].split(".")[0] for error in record["errors"]}
    assert ops == {"tree_ssd", "tree_scan", "tree_delta", "tree_conv", "tree_attention"}
    assert all(row["error"] < 2e-5 for row in record["errors"])
    assert record["lazy_ahead_from_batch"] in (None, 1, 2)


@pytest.mark.parametrize(
    "bad, message",
    [
        (("verify", "--accepted", "9"), "--accepted must not exceed --max-path"),
        (("kernels", "--nodes", "4"), "Expected --accepted <= --max-path"),
        (("compile", "--tensor", "0"), "--tensor must be positive"),
    ],
)
def test_bad_benchmarks_of_shapes_are_one_line(capsys, bad, message):
    assert message in error_of(capsys, "bench", *bad)


@pytest.mark.parametrize(
    "bad, message",
    [
        (("decode", "--drafter", "magic:3"), "magic:3"),
        (("decode", "--prompts", "no/file"), "no/file"),
        (("decode", "--limit", "-1"), "--limit must be positive, got -1"),
        (("decode", "--plot", "no/folder/a.png"), "no folder no/folder for --plot"),
        (("decode", "--repeats", "0"), "--repeats must be positive"),
        (("decode", "--batch", str(2**31)), "--batch must be below 2**31"),
        (("rollback", "--nodes", str(-(2**40))), "--nodes must be below 2**31"),
        (("rollback", "--nodes", "8", "0"), "--nodes must be positive"),
        (("rollback", "--accepted", "9"), "from 1 to 8"),
    ],
)
def test_bad_benchmarks_are_one_line(capsys, bad, message):
    kind, *options = bad
    arguments = ["bench", kind, "--model", str(folder.make()), *options]
    assert message in error_of(capsys, *arguments)


@pytest.mark.parametrize("option", ["--steps", "--batch-size", "--save-every"])
def test_bad_training_is_one_line(capsys, tmp_path, option):
    arguments = ["train", "target", "--out", str(tmp_path / "run"), option, "0"]
    assert f"{option} must be positive" in error_of(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_pictures_without_matplotlib_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "jaxspec.plotting", raising=False)
    monkeypatch.delattr("jaxspec.plotting", raising=False)
    arguments = ["bench", "decode", "--plot", str(tmp_path / "speed.png")]
    assert "pip install 'jaxspec[plot]'" in error_of(capsys, *arguments)
