"""`jaxspec generate`: stops, chat, errors of the model, and what is compiled when."""

import collections
import dataclasses
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from tokenizers import processors

import checkpoints_conv
import folder
import jaxspec
import published
from jaxspec import decoding, pretrained, weights
from jaxspec.__main__ import main
from jaxspec.cli import following, terminal
from jaxspec.models import hybrid

ROOT = pathlib.Path(__file__).parents[3]
PROMPT = "def add(a, b):\n"
DRAFTERS = ["none", "ngram:6", "suffix:6", "model:2,1"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


@pytest.fixture
def generate(capsys):
    """Runs `jaxspec generate --json` on a small model."""

    def run(*arguments, model=None, status=0):
        models = ["--model", str(model or folder.make())]
        models += ["--draft-model", str(folder.make("M"))]
        options = [] if "--prompt" in arguments else ["--prompt", PROMPT]
        found = main(["generate", *models, *options, "--json", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert found == status, err
        return json.loads(out), err

    return run


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_stop_strings_end_rows_each_on_its_own(generate, drafter):
    sampled = ["--max-tokens", 24, "--batch", 3, "--temperature", "1.5"]
    options = [*sampled, "--drafter", drafter]
    whole, _ = generate(*options)
    texts = whole["texts"]
    stop = texts[1][4:8]  # of characters that are spread over tokens
    assert all(text[4:8] != stop for text in (texts[0], texts[2]))
    record, _ = generate(*options, "--stop", stop, "--stop", "\x00\x00", "--compare")
    expected = [text.partition(stop)[0] for text in texts]
    assert record["texts"] == expected and record["text"] == expected[0]
    reasons = ["stop" if stop in text else "length" for text in texts]
    assert record["finish_reasons"] == reasons and reasons[1] == "stop"
    assert record["finish_reason"] == reasons[0]
    assert whole["target_calls"] - record["target_calls"] >= 6  # the row was done
    assert record["autoregressive"]["identical"]


def test_the_loop_ends_with_the_texts(generate):
    """Steps in which all rows have met their stop strings are not made."""
    options = ("--drafter", "none", "--max-tokens", 200, "--temperature", "1.5")
    text = generate(*options)[0]["text"]
    record, _ = generate(*options, "--stop", text[3:6])
    assert record["text"] == text[:3] and len(record["tokens"]) < 12


@pytest.mark.parametrize("drafter", ["none", "ngram:6"])
def test_stop_tokens_are_not_in_the_text(generate, monkeypatch, drafter):
    options = ("--drafter", drafter, "--max-tokens", 24)
    whole, _ = generate(*options)
    stop = whole["tokens"][5]
    end = whole["tokens"].index(stop)
    read = weights.read_source
    changed = {"stop_tokens": [stop]}
    monkeypatch.setattr(weights, "read_source", lambda path: read(path) | changed)
    record, _ = generate(*options)
    assert record["tokens"] == whole["tokens"][: end + 1]
    assert record["text"] == folder.tokenizer().decode(record["tokens"][:end])
    assert record["finish_reason"] == "stop"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """A model whose logits are NaN after a token, and where that is."""
    config = dataclasses.replace(folder.config(), tie_embeddings=False)
    params = jax.jit(hybrid.language_model(config).init)(jax.random.key(3))
    params = jax.tree.map(lambda leaf: 3.0 * leaf if leaf.ndim > 1 else leaf, params)
    path = tmp_path_factory.mktemp("models")
    pretrained.save(path / "good", config, params, folder.tokenizer())
    prompt = folder.tokenizer().encode(PROMPT).ids
    tokens = greedy(pretrained.load(path / "good"), prompt, 12)
    bad = next(i for i, t in enumerate(tokens) if i > 4 and t not in tokens[:i])
    table = params["embed"]["embedding"]
    table = table.at[tokens[bad]].set(jnp.nan)
    params = params | {"embed": {"embedding": table}}
    pretrained.save(path / "bad", config, params, folder.tokenizer())
    return path / "bad", tokens[: bad + 1], len(prompt) + bad + 1


def greedy(loaded, prompt, count):
    weights = jaxspec.Params(loaded.params)
    machinery = {"target": loaded.model}
    state = jaxspec.init_state(
        weights, jnp.array([prompt]), max_new_tokens=count, **machinery
    )
    state = jaxspec.generate(weights, state, **machinery)
    return state.tokens[0, len(prompt) : len(prompt) + count].tolist()


@pytest.mark.parametrize("drafter", ["none", "ngram:6", "suffix:6"])
def test_logits_that_are_not_finite_end_the_command(generate, overflowing, drafter):
    model, tokens, position = overflowing
    options = ("--max-tokens", 20, "--drafter", drafter)
    record, err = generate(*options, "--batch", 2, "--compare", model=model, status=1)
    assert err.count("\n") == 1 and f"row 0 for position {position} are not" in err
    assert record["tokens"] == tokens
    assert record["finish_reasons"] == ["error", "error"]
    stop = folder.tokenizer().decode(tokens)[-2:]  # the text ends just before
    record, err = generate(*options, "--stop", stop, model=model)
    assert record["finish_reason"] == "stop" and err == ""


@pytest.fixture
def compiled(caplog):
    """Counts what is compiled, by name, when nothing was before."""
    jax.clear_caches()
    with jax.log_compiles():
        yield lambda: collections.Counter(
            re.findall(r"Finished XLA compilation of jit\(_?(\w+)\)", caplog.text)
        )


@pytest.mark.parametrize("drafter", ["ngram:6", "suffix:6"])
def test_each_program_is_compiled_once(capsys, compiled, drafter):
    arguments = ["generate", "--model", str(folder.make()), "--prompt", PROMPT]
    arguments += ["--drafter", drafter, "--stop", "no such text"]
    assert main([*arguments, "--max-tokens", "13", "--compare"]) == 0
    capsys.readouterr()
    loop = "step" if drafter == "suffix:6" else "speculate"
    found = compiled()
    assert {name: found[name] for name in ("prefill", loop, "generate")} == {
        "prefill": 1,
        loop: 1,
        "generate": 1,
    }


@pytest.mark.thorough
def test_a_baseline_does_not_pay_for_a_ring(capsys, compiled):
    arguments = ["generate", "--model", str(folder.make()), "--prompt", PROMPT]
    assert main([*arguments, "--max-tokens", "8", "--compare", "--rollback=lazy"]) == 0
    capsys.readouterr()
    assert compiled()["prefill"] == 2  # one without


@pytest.mark.parametrize("compare", [[], ["--compare"]])
def test_texts_are_decoded_once(capsys, monkeypatch, compare):
    steps, loop = [], decoding.generate

    def counting(*args, max_steps, **kwargs):
        steps.append(max_steps)
        return loop(*args, max_steps=max_steps, **kwargs)

    monkeypatch.setattr(decoding, "generate", counting)
    arguments = ["generate", "--model", str(folder.make()), "--prompt", PROMPT]
    assert main([*arguments, "--drafter=none", "--max-tokens", "24", *compare]) == 0
    capsys.readouterr()
    each = [following.STEPS] * (24 // following.STEPS + 1)  # one call to compile
    assert steps == each * (1 + len(compare))


def test_the_prompt_is_printed_before_anything_is_loaded(capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no weights")

    monkeypatch.setattr(weights, "load", fail)
    model = str(folder.make())
    assert main(["generate", "--model", model, "--prompt", PROMPT]) == 2
    out, err = capsys.readouterr()
    assert out == PROMPT
    assert err.splitlines() == [
        f"Compiling {model}: the pass over the prompt, then the loop with ngram:8.",
        "jaxspec generate: no weights",
    ]


def test_drafts_are_green_where_there_are_colours(capsys, monkeypatch, generate):
    expected = generate("--max-tokens", 24)[0]["text"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    arguments = ["generate", "--model", str(folder.make()), "--prompt", PROMPT]
    arguments += ["--draft-model", str(folder.make()), "--drafter", "model:chain:2"]
    assert main([*arguments, "--max-tokens", "24"]) == 0
    out, err = capsys.readouterr()
    assert re.sub(r"\x1b\[\d*m", "", out) == PROMPT + expected + "\n"
    assert out.startswith("\x1b[2m") and "\x1b[32m" in out and "Green is" in err
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([*arguments, "--max-tokens", "24"]) == 0
    out, err = capsys.readouterr()
    assert out == PROMPT + expected + "\n" and "Green is" not in err


def test_text_is_written_as_it_is(capsys):
    screen = terminal.Screen()
    screen.write("\ta" + "b" * 200 + "\r\n")
    assert capsys.readouterr().out == "\ta" + "b" * 200 + "\r\n"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A converted checkpoint whose tokenizer adds a BOS, as does its chat template."""
    path = tmp_path_factory.mktemp("chat")
    shutil.copytree(published.source("llama"), path / "source")
    tokenizer = folder.tokenizer().from_str(folder.tokenizer().to_str())
    bos = weights.END_OF_TEXT
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.save(str(path / "source" / "tokenizer.json"))
    config = {"bos_token": bos, "eos_token": "d", "chat_template": TEMPLATE}
    (path / "source" / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "source" / "chat_template.jinja").write_bytes(TEMPLATE.encode() + b"\r\n")
    checkpoints_conv.convert(path / "source", path / "model")
    return path / "source", path / "model", tokenizer


def test_chat_renders_the_template_with_one_bos(generate, chatty, tmp_path):
    source, model, tokenizer = chatty
    record, _ = generate("--chat", "--prompt", "add", "--system", "be", model=model)
    plain = tokenizer.encode("<system>be<user>add", add_special_tokens=False).ids
    assert record["prompt_tokens"] == 1 + len(plain)
    end = tokenizer.token_to_id("d")
    assert end not in record["tokens"][:-1] and "d" not in record["text"][-1:]
    checkpoints_conv.export(model, tmp_path / "back")
    for name in weights.CHAT:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_a_prompt_has_one_bos(generate, chatty):
    _, model, tokenizer = chatty
    count = len(tokenizer.encode("add", add_special_tokens=False).ids)
    bos = weights.END_OF_TEXT

    def length(*options):
        return generate(*options, model=model)[0]["prompt_tokens"]

    assert length("--prompt", "add") == length("--prompt", bos + "add") == count + 1
    assert length("--prompt", "add", "--no-bos") == count


def test_an_interrupt_during_the_imports_is_silent():
    slow = """
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where jobs ignore it

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "jaxspec":
            print("importing", flush=True)
            import time
            time.sleep(60)

sys.meta_path.insert(0, Slow())
import jaxspec_command
sys.exit(jaxspec_command.main())
"""
    command = [sys.executable, "-c", slow]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen(command, text=True, **pipe) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
