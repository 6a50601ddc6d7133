"""Damage to files, drawn from a seed: of bytes as such, and of JSON by its structure."""

import json

import numpy as np

HOLE = "@hole@"
ODD = [  # texts that stand where a value stood
    *("null", "true", "0", "-1", "1.5", '""', "[]", "{}", '"x"', "[[]]", '[{"a": []}]'),
    *("1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e308", "4e-324", "-0.0"),
    *(
        "9" * 19,
        "-" + "9" * 30,
        "9" * 400,
        "9" * 5000,
        "2147483648",
        "2147483647",
        "65537",
    ),
    *("[" * 900 + "]" * 900, "[" * 200_000, '{"a":' * 150 + "1" + "}" * 150, "[1, 2"),
    *(
        json.dumps("x" * 300),
        json.dumps("ü" * 5000),
        '"\\ud800"',
        '"a\\nb"',
        '"\\u0000"',
    ),
    *(
        '"../../../etc/passwd"',
        '{"a": 1, "a": 2}',
        '{"": null}',
        "'x'",
        "\x00",
        "\ufeff",
    ),
    *("[null]", "[1e3]", '["a", "b"]', "[true]", "[-1]", "[1, 2, 3, 4]"),
]


def of_bytes(raw, rng):
    """A file that a disk, a kill or an editor could have made of another."""
    raw = bytearray(raw)
    at, end = sorted(int(i) for i in rng.integers(0, len(raw) + 1, 2))
    kind = rng.integers(7)
    if kind == 0:
        for i in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[i] ^= 1 << int(rng.integers(8))
    elif kind == 1:  # where headers are
        raw[int(rng.integers(min(len(raw), 16)))] = int(rng.integers(256))
    elif kind == 2:
        del raw[at:]
    elif kind == 3:
        del raw[at : min(end, at + 8)]
    elif kind == 4:
        raw[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == 5:
        raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    else:
        raw[at:at] = raw[at : min(end, at + 99)]
    return bytes(raw)


def of_json(raw, rng):
    """JSON with one value, or one name, that its reader does not expect."""
    record = json.loads(raw)
    places = list(_places(record))
    within, key = places[rng.integers(len(places))]
    kind = rng.integers(8) if isinstance(within, dict) else 7
    if kind == 0:
        del within[key]
    elif kind == 1:
        within[f"{key}_"] = within.pop(key)
    elif kind == 2:
        within["unheard_of"] = 1
    elif kind == 3:
        text = json.dumps(record | {HOLE: 0})
        return text.replace(f'"{HOLE}": 0', f"{json.dumps(key)}: 0").encode()
    else:
        within[key] = HOLE
    odd = ODD[rng.integers(len(ODD))]
    return json.dumps(record).replace(f'"{HOLE}"', odd).encode()


def of_header(raw, rng):
    """A safetensors file whose header is another, of the length that it says or not."""
    size = int.from_bytes(raw[:8], "little")
    header = of_json(raw[8 : 8 + size], rng)
    length = size if rng.integers(4) == 0 else len(header)
    if rng.integers(8) == 0:
        length = int(rng.choice([0, 2**31, 2**40, 2**63]))
    return length.to_bytes(8, "little") + header + raw[8 + size :]


def draw(name, raw, rng):
    """A mutation of a file, by what its name says that it is."""
    if rng.integers(3) and raw:
        if name.endswith((".json", "_METADATA", "_sharding")):
            return of_json(raw, rng)
        if name.endswith(".safetensors"):
            return of_header(raw, rng)
        if name.endswith(".jsonl"):
            lines = raw.split(b"\n")
            at = int(rng.integers(len(lines) - 1))
            lines[at] = of_json(lines[at], rng)
            return b"\n".join(lines)
    return of_bytes(raw, rng)


def _places(record):
    """Every dict or list of a record with a key of it."""
    items = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in list(items):
        yield record, key
        if isinstance(value, dict | list):
            yield from _places(value)


def generator(*seeds):
    return np.random.default_rng(seeds)
