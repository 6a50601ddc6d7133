"""Tokenizers with every kind of decoder, small enough for random tokens to meet edges."""

import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

WORDS = ["a", "b", "ab", "\u00e9", "\u20ac", ".", "\n", "def", "x", "class"]
BOS, EOS, TOOL = "<s>", "</s>", "<tool>"


def _finish(tokenizer):
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.add_tokens([AddedToken(TOOL)])  # is text
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def byte_level():
    """GPT's: any bytes, so characters are spread over tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(
        models.BPE({letter: i for i, letter in enumerate(letters)}, [])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _finish(made)


def byte_fallback():
    """Llama's: words that carry their space, and bytes for what is no word."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += [f"\u2581{word}" for word in WORDS] + WORDS
    made = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback()]
    steps += [decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return _finish(made)


def metaspace():
    """Sentencepiece's, without bytes."""
    pieces = ["<unk>", "\u2581", *(f"\u2581{word}" for word in WORDS), *WORDS]
    made = tokenizers.Tokenizer(
        models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _finish(made)


def word_piece():
    """BERT's: spaces between words, but not before punctuation."""
    pieces = ["[UNK]", *WORDS, *(f"##{word}" for word in WORDS)]
    made = tokenizers.Tokenizer(
        models.WordPiece(
            {piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"
        )
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    return _finish(made)


KINDS = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "metaspace": metaspace,
    "word-piece": word_piece,
}
