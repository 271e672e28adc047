"""Odd files: each is read to the rows that are expected, or refused in one line of readable length."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_common.data import Choices, read_own_files
from finetune_common.errors import ConfigurationError

Odd = tuple[str, str | bytes, dict[str, Any], Any]


def rows(*labels: object, text: str = "word") -> str:
    return "text,label\n" + "".join(f"{text} {i},{label}\n" for i, label in enumerate(labels))


def lines(*found: object) -> str:
    return "\n".join(json.dumps(row) for row in found)


AB = {"text": ["word 0", "word 1"], "label": [0, 1]}
"""What most readable files here hold."""

READ: dict[str, Odd] = {
    "crlf": ("a.csv", rows("x", "y").replace("\n", "\r\n"), {}, AB),
    "old mac": ("a.csv", rows("x", "y").replace("\n", "\r"), {}, AB),
    "no newline at the end": ("a.csv", rows("x", "y").rstrip(), {}, AB),
    "blank lines": ("a.csv", "\n" + rows("x", "y").replace("\n", "\n\n"), {}, AB),
    "byte-order mark": ("a.csv", b"\xef\xbb\xbf" + rows("x", "y").encode(), {}, AB),
    "byte-order mark, named": ("a.csv", b"\xef\xbb\xbf" + rows("x", "y").encode(), {"encoding": "UTF_8"}, AB),
    "byte-order mark, other names": (
        "a.csv",
        b"\xef\xbb\xbf" + rows("x", "y").encode(),
        {"encoding": "u8"},
        AB,
    ),
    "byte-order mark of one order": (
        "a.json",
        ("\ufeff" + lines({"text": "word 0", "label": "x"}, {"text": "word 1", "label": "y"})).encode(
            "utf-16-le"
        ),
        {"encoding": "utf-16-le"},
        AB,
    ),
    "byte-order mark before a quote, packed": (
        "a.csv.gz",
        gzip.compress(b'\xef\xbb\xbf"text",label\nword 0,x\nword 1,y\n'),
        {},
        AB,
    ),
    "byte-order mark of utf-16": ("a.csv", rows("x", "y").encode("utf-16"), {"encoding": "utf-16"}, AB),
    "blanks around the header": ("a.csv", rows("x", "y").replace("text,label", " text , label"), {}, AB),
    "blanks before labels": ("a.csv", rows(" x", " y"), {}, ("x", "y")),
    "header in capitals": ("a.csv", rows("x", "y").replace("label", "Label"), {}, AB),
    "labels": ("a.csv", rows("x", "y").replace("label", "labels"), {}, AB),
    "semicolons": ("a.csv", rows("x", "y").replace(",", ";"), {"delimiter": ";"}, AB),
    "pipes in tsv": ("a.tsv", rows("x", "y").replace(",", "|"), {"delimiter": "|"}, AB),
    "tabs in csv": ("a.csv", rows("x", "y").replace(",", "\t"), {"delimiter": "tab"}, AB),
    "all quoted": ("a.csv", '"text","label"\n"word 0","x"\n"word 1","y"\n', {}, AB),
    "quotes within": ("a.csv", 'text,label\n"say ""hi""",x\nb,y\n', {}, ['say "hi"', "b"]),
    "delimiter within": ("a.csv", 'text,label\n"a, b",x\nb,y\n', {}, ["a, b", "b"]),
    "lines within": ("a.csv", 'text,label\n"a\nb",x\nb,y\n', {}, ["a\nb", "b"]),
    "apostrophes at both ends": (
        "a.csv",
        "text,label\n'tis',x\n'a' and 'b',y\n",
        {},
        ["'tis'", "'a' and 'b'"],
    ),
    "a cell over 128 kB": ("a.csv", rows("x", "y", text="w" * 200_000), {}, ("x", "y")),
    "other alphabets": ("a.csv", "text,label\nдоброе,да\n悪い,いいえ\n", {}, ["доброе", "悪い"]),
    "index of pandas": ("a.csv", ",text,label\n0,word 0,x\n1,word 1,y\n", {}, AB),
    "index of pandas, twice": ("a.csv", ",Unnamed: 0,text,label\n0,0,word 0,x\n1,1,word 1,y\n", {}, AB),
    "named index": ("a.csv", "nr,text,label\n7,word 0,x\n8,word 1,y\n", {}, AB),
    "identifiers": ("a.csv", "id,text,label\nt-a,word 0,x\nt-b,word 1,y\n", {}, AB),
    "ticket number": ("a.csv", "ticket,text,label\n31,word 0,x\n17,word 1,y\n", {}, AB),
    "dates": ("a.csv", "day,text,label\n2024-01-02,word 0,x\n2024-01-03T10:00:00Z,word 1,y\n", {}, AB),
    "times": ("a.csv", "at,text,label\n10:00,word 0,x\n11:30,word 1,y\n", {}, AB),
    "prices": ("a.csv", "price,text,label\n1.50,word 0,x\n-2e3,word 1,y\n", {}, AB),
    "an empty column": ("a.csv", "more,text,label\n,word 0,x\n,word 1,y\n", {}, AB),
    "commas at the end of each line": ("a.csv", "text,label,,\nword 0,x,,\nword 1,y,,\n", {}, AB),
    "text named": ("a.csv", "more,text,label\nu,word 0,x\nv,word 1,y\n", {"text_columns": ("text",)}, AB),
    "numbers as the text": ("a.csv", "text,label\n12,x\n13,y\n", {"text_columns": ("text",)}, ["12", "13"]),
    "an empty text": ("a.csv", "text,label\n,x\nb,y\n", {}, ["", "b"]),
    "premise and hypothesis": ("a.csv", "hypothesis,premise,label\na,b,x\nc,d,y\n", {}, ("x", "y")),
    "labels 0 and 1": ("a.csv", rows(0, 1), {}, ("0", "1")),
    "shares as words": ("a.csv", rows("20%", "50%"), {"kind": "classes"}, ("20%", "50%")),
    "a quoted text after a blank": ("a.csv", 'text,label\n" ""a""",x\nb,y\n', {}, [' "a"', "b"]),
    "joined labels as classes": ("a.csv", rows("x|y", "x", "y"), {"kind": "classes"}, ("x", "x|y", "y")),
    "labels -1 and 1": ("a.csv", rows(1, -1), {}, ("-1", "1")),
    "labels of truth": (
        "a.jsonl",
        lines({"text": "a", "label": True}, {"text": "b", "label": False}),
        {},
        ("false", "true"),
    ),
    "ten before two": ("a.csv", rows(10, 2, 9), {}, ("2", "9", "10")),
    "ratings as scores": ("a.csv", rows(1, 5, 3), {"kind": "regression"}, [1.0, 5.0, 3.0]),
    "scores": ("a.csv", rows("0.5", "1", "-2e-1"), {}, [0.5, 1.0, -0.2]),
    "scores with a point only": ("a.csv", rows(".5", "1.", "+2"), {}, [0.5, 1.0, 2.0]),
    "floats that are classes": ("a.csv", rows("1.0", "0.0", "1"), {"kind": "classes"}, ("0", "1")),
    "superscripts": ("a.csv", rows("²", "³"), {}, ("²", "³")),
    "a label of 5,000 digits": ("a.csv", rows("9" * 5000, "1"), {}, ("1", "9" * 5000)),
    "none as a word": ("a.csv", rows("none", "some"), {}, ("none", "some")),
    "None and NA are words": ("a.csv", rows("None", "NA"), {}, ("NA", "None")),
    "seventy-seven intents": ("a.csv", rows(*(i % 77 for i in range(400))), {}, tuple(map(str, range(77)))),
    "folded": ("a.csv", rows("Spam", "spam ", "spam ", "ham"), {"label_spelling": "fold"}, ("ham", "spam")),
    "folded across forms of unicode": (
        "a.csv",
        rows("café", "cafe\u0301", "thé"),
        {"label_spelling": "fold"},
        None,
    ),
    "lists of pandas": ("a.csv", "text,label\na,\"['x', 'y']\"\nb,\"['x']\"\n", {}, [[0, 1], [0]]),
    "lists of json": ("a.tsv", 'text\tlabel\na\t"[""x"", ""y""]"\nb\t[]\n', {}, [[0, 1], []]),
    "lists of numpy": ("a.csv", "text,label\na,['x' 'y']\nb,['x']\n", {}, [[0, 1], [0]]),
    "numbers of numpy": ("a.csv", "text,label\na,[0 1]\nb,[0]\n", {}, [[0, 1], [0]]),
    "sets": ("a.csv", "text,label\na,\"{'x', 'y'}\"\nb,{'x'}\n", {}, [[0, 1], [0]]),
    "tuples": ("a.csv", "text,label\na,\"('x', 'y')\"\nb,\"('x',)\"\n", {}, [[0, 1], [0]]),
    "lists of a database": (
        "a.csv",
        'text,label\na,"{x,late delivery}"\nb,{x}\n',
        {"kind": "labels"},
        [[0, 1], [1]],
    ),
    "a comma and a bracket in quotes": (
        "a.csv",
        "text,label\na,\"['x, ]y', 'it\\'s']\"\nb,['z']\n",
        {},
        [[0, 1], [2]],
    ),
    "brackets as words": ("a.csv", rows("(x)", "(y)"), {"kind": "classes"}, ("(x)", "(y)")),
    "vectors as names": (
        "a.jsonl",
        lines({"text": "a", "label": [1, 1]}, {"text": "b", "label": [0, 1]}),
        {"kind": "labels"},
        [[1], [0, 1]],
    ),
    "lists of two numbers": (
        "a.jsonl",
        lines({"text": "a", "label": [1, 2]}, {"text": "b", "label": [2, 3]}),
        {},
        [[0, 1], [1, 2]],
    ),
    "names with signs": (
        "a.csv",
        rows("sci/tech", "business & finance", "finance", "not offensive", "offensive", "New York", "York"),
        {},
        ("New York", "York", "business & finance", "finance", "not offensive", "offensive", "sci/tech"),
    ),
    "a name twice": ("a.csv", rows("bye", "bye-bye", "hi"), {}, ("bye", "bye-bye", "hi")),
    "numbered names": ("a.csv", rows("class 1", "class 2"), {}, ("class 1", "class 2")),
    "ranges": ("a.csv", rows("1-5", "6-10"), {}, ("1-5", "6-10")),
    "a word among numbers": ("a.csv", rows(0, "N/A", 1), {"kind": "classes"}, ("0", "1", "N/A")),
    "two words among numbers": ("a.csv", rows(0, "low", 1, "high"), {}, ("0", "1", "high", "low")),
    "amounts as words": ("a.csv", rows("10 km", "12 km"), {"kind": "classes"}, ("10 km", "12 km")),
    "scores close to each other": ("a.csv", rows("1000.25", "1000.5"), {}, [1000.25, 1000.5]),
    "one label in lists": (
        "a.jsonl",
        lines({"text": "a", "label": ["x"]}, {"text": "b", "label": []}),
        {},
        [[0], []],
    ),
    "a label twice in a row": (
        "a.jsonl",
        lines({"text": "a", "label": ["x", "x"]}, {"text": "b", "label": ["y"]}),
        {},
        [[0], [1]],
    ),
    "lists and single ones": (
        "a.jsonl",
        lines({"text": "a", "label": ["x", "y"]}, {"text": "b", "label": "x"}),
        {"kind": "labels"},
        [[0, 1], [0]],
    ),
    "brackets in words": ("a.csv", rows("[sic]", "y"), {}, ("[sic]", "y")),
    "unlabelled left out": ("a.csv", rows("x", "", "y"), {"drop_unlabelled": True}, ["word 0", "word 2"]),
    "nan left out": ("a.csv", rows("x", "nan", "y"), {"drop_unlabelled": True}, ["word 0", "word 2"]),
    "json a row a line": (
        "a.json",
        lines({"text": "word 0", "label": "x"}, {"text": "word 1", "label": "y"}),
        {},
        AB,
    ),
    "json list": (
        "a.json",
        json.dumps([{"text": "word 0", "label": "x"}, {"text": "word 1", "label": "y"}]),
        {},
        AB,
    ),
    "json in other order": (
        "a.jsonl",
        lines({"text": "word 0", "label": "x"}, {"label": "y", "text": "word 1"}),
        {},
        AB,
    ),
    "json with more fields in some": (
        "a.jsonl",
        lines({"text": "word 0", "label": "x"}, {"text": "word 1", "label": "y", "n": 1}),
        {},
        AB,
    ),
    "json null text": (
        "a.jsonl",
        lines({"text": None, "label": "x"}, {"text": "b", "label": "y"}),
        {},
        ["", "b"],
    ),
    "json nested": (
        "a.jsonl",
        lines({"t": {"b": "word 0"}, "label": "x"}, {"t": {"b": "word 1"}, "label": "y"}),
        {},
        None,
    ),
    "a pair of surrogates": (
        "a.jsonl",
        '{"text": "\\ud83d\\ude00", "label": "x"}\n{"text": "b", "label": "y"}',
        {},
        ["😀", "b"],
    ),
    "gzip": ("a.csv.gz", gzip.compress(rows("x", "y").encode()), {}, AB),
    "gzip of two members": (
        "a.csv.gz",
        gzip.compress(b"text,label\n") + gzip.compress(b"word 0,x\nword 1,y\n"),
        {},
        AB,
    ),
    "dots in the name": ("a.2024.v1.CSV.Gz", gzip.compress(rows("x", "y").encode()), {}, AB),
}

REFUSED: dict[str, Odd] = {
    "no such file": ("absent.csv", b"", {}, "No such file"),
    "a folder": ("folder.csv", b"", {}, "directory"),
    "another ending": ("a.xlsx", "x", {}, r"'.xlsx': give one of .csv"),
    "no ending": ("a", "x", {}, "give one of .csv"),
    "only gz": ("a.gz", gzip.compress(b"x"), {}, "one of them with .gz"),
    "nothing": ("a.csv", "", {}, "no rows"),
    "only blanks": ("a.csv", "\n\n", {}, "no rows"),
    "only a header": ("a.csv", "text,label\n", {}, "no rows"),
    "an empty json": ("a.json", "", {}, "no rows"),
    "an empty list": ("a.json", "[]", {}, "no rows"),
    "no header": (
        "a.csv",
        "good,1\nbad,0\n",
        {},
        "no column 'label' or 'labels' among good, 1: --label-column",
    ),
    "no label": ("a.csv", "text,score\na,1\n", {}, "among text, score: --label-column NAME"),
    "no such text": ("a.csv", rows("x", "y"), {"text_columns": ("txt",)}, "did you mean 'text'"),
    "no words": ("a.csv", "n,label\n1,x\n2,y\n", {}, r"no column holds words .*n \(an index"),
    "no text at all": ("a.csv", "label\nx\ny\n", {}, "no column holds words"),
    "three texts": (
        "a.csv",
        "a,b,c,label\np,q,r,x\n",
        {},
        r"3 columns could be the text: a, b, c: .*--text-columns",
    ),
    "two columns of one name": ("a.csv", "text,text,label\na,b,x\n", {}, "several named 'text'"),
    "two fields of one name": (
        "a.jsonl",
        '{"text": "a", "text": "b", "label": 1}',
        {},
        "'text' occurs twice",
    ),
    "nested and plain": (
        "a.jsonl",
        '{"a.b": "x", "a": {"b": "y"}, "label": 1}',
        {},
        "'a.b' occurs twice",
    ),
    "one class": ("a.csv", rows("x", "x"), {}, "every label is 'x': a task needs two classes"),
    "equal scores": ("a.csv", rows("0.5", "0.5"), {}, "every label is '0.5': scores have to differ"),
    "no labels": ("a.csv", rows("", ""), {"drop_unlabelled": True}, "no row has a label"),
    "empty labels": (
        "a.csv",
        rows("x", "", "y", " "),
        {},
        "missing in 2 rows: lines 3, 5; --drop-unlabelled",
    ),
    "nan": ("a.csv", rows("x", "nan", "y"), {}, "missing in 1 row: line 3"),
    "empty texts": (
        "a.csv",
        "text,label\n,x\n ,y\n",
        {"text_columns": ("text",)},
        "'text' is empty in every row",
    ),
    "a word among scores": ("a.csv", rows("1.5", "x", "2"), {}, "holds scores, but 'x' in 1 row: line 3"),
    "infinite": (
        "a.csv",
        rows("1.5", "1e39", "2"),
        {},
        "'1e39' in 1 row: line 3; allowed is a finite number",
    ),
    "words as scores": ("a.csv", rows("x", "y"), {"kind": "regression"}, "'x' in 2 rows: lines 2, 3"),
    "decimal commas": ("a.tsv", "text\tlabel\na\t0,5\nb\t1,5\n", {}, "numbers with a comma, such as '0,5'"),
    "a short line": ("a.csv", "text,label\na,1\nb\nc,0\nd\n", {}, "2 of 4 rows do not have .*: lines 3, 5"),
    "a long line": ("a.csv", "text,label\na, b,1\nb,0\n", {}, "1 of 2 rows"),
    "an open quote": (
        "a.csv",
        'text,label\na,x\n"b,y\nc,z\n',
        {},
        "line 3: not separated by ',' with quotes",
    ),
    "text after a quote": ("a.csv", 'text,label\n"a"b,x\n', {}, "line 2: not separated"),
    "semicolons unsaid": ("a.csv", "text;label\na;x\n", {}, "--delimiter names another one, such as ';'"),
    "tabs unsaid": ("a.csv", "text\tlabel\na\tx\n", {}, "such as tab"),
    "quotes by apostrophes": ("a.csv", "text,label\n'it''s',x\nb,y\n", {}, "look quoted by ' instead of"),
    "latin 1": (
        "a.csv",
        "text,label\nok,x\ncaf\u00e9,y\n".encode("latin-1"),
        {},
        "line 3: byte 0xe9 is not UTF-8",
    ),
    "utf-16 unsaid": (
        "a.csv",
        rows("x", "y").encode("utf-16"),
        {},
        "utf-16, which its first bytes look like",
    ),
    "not that encoding": ("a.csv", b"text,label\n\x81,x\n", {"encoding": "cp1252"}, "is not CP1252"),
    "no gzip": ("a.csv.gz", rows("x", "y"), {}, "not a complete gzip file"),
    "half a gzip": ("a.csv.gz", gzip.compress(rows("x", "y").encode())[:-12], {}, "not a complete gzip file"),
    "no parquet": ("a.parquet", "text", {}, "not a parquet file"),
    "half a parquet": ("a.parquet", b"PAR1 and no more", {}, "not a parquet file"),
    "no arrow": ("a.arrow", "text", {}, "not an arrow file"),
    "half an arrow": ("a.arrow", b"ARROW1\0\0 and no more", {}, "not an arrow file"),
    "broken json": ("a.jsonl", '{"text": "a", "label": 1}\n{"text"', {}, "line 2: not JSON"),
    "broken json list": ("a.json", '[\n{"text": "a", "label": 1},\n{"text" 1}]', {}, "line 3: not JSON"),
    "a json list without its end": (
        "a.json",
        '[{"text": "a", "label": 1}',
        {},
        "line 1: not JSON: expected ',' or",
    ),
    "a json list and more": (
        "a.json",
        '[{"text": "a", "label": 1}]\n3',
        {},
        "line 2: not JSON: more follows",
    ),
    "two values in a line": ("a.jsonl", '{"text": "a"} {"text": "b"}', {}, "line 1: not JSON: more follows"),
    "a number": ("a.json", "3", {}, "1 row .*line 1; give one object a row"),
    "lists in lines": ("a.jsonl", '["a", 1]\n["b", 2]', {}, "2 rows .*lines 1, 2"),
    "columns of pandas": ("a.json", '{"text": {"0": "a"}, "label": {"0": "x"}}', {}, "orient='records'"),
    "a json number of 5,000 digits": (
        "a.jsonl",
        '{"text": "a", "label": ' + "9" * 5000 + "}",
        {},
        "line 1: not JSON",
    ),
    "deep json": ("a.json", "[" * 100_000 + "]" * 100_000, {}, "nested too deeply"),
    "deep jsonl": ("a.jsonl", '{"a":' * 100_000 + "1" + "}" * 100_000, {}, "nested too deeply"),
    "half a character": (
        "a.jsonl",
        lines({"text": "a\ud800b", "label": 1}, {"text": "b", "label": 0}),
        {},
        "without invalid char",
    ),
    "half a label": (
        "a.jsonl",
        lines({"text": "a", "label": "\ud800"}, {"text": "b", "label": "x"}),
        {},
        "an invalid char",
    ),
    "half a name": (
        "a.jsonl",
        lines({"text\ud800": "a", "label": "x"}),
        {},
        "an invalid character in its name",
    ),
    "text that is a number": (
        "a.jsonl",
        lines({"text": "a", "label": 1}, {"text": 1, "label": 0}),
        {},
        "'text' is 1 in 1 row: line 2; expected text",
    ),
    "some lists": (
        "a.jsonl",
        lines({"text": "a", "label": ["x"]}, {"text": "b", "label": "y"}),
        {},
        "lists in 1 of 2",
    ),
    "lists as classes": (
        "a.jsonl",
        lines({"text": "a", "label": ["x"]}),
        {"kind": "classes"},
        "holds lists: line 1",
    ),
    "several signs": (
        "a.csv",
        "text,label\na,x|y;z\nb,x\n",
        {"kind": "labels"},
        "several signs between labels",
    ),
    "lists within lists": (
        "a.jsonl",
        lines({"text": "a", "label": [["x"]]}, {"text": "b", "label": ["y"]}),
        {},
        "words or numbers alone",
    ),
    "null in a list": (
        "a.csv",
        "text,label\na,\"['x', None]\"\nb,['y']\n",
        {},
        "None.* in 1 row: line 2; a list of labels holds words",
    ),
    "truth among numbers": (
        "a.jsonl",
        lines({"text": "a", "label": True}, {"text": "b", "label": 0}),
        {},
        "truth values in 1 of 2 rows",
    ),
    "shares": ("a.csv", rows("50%", "20 %"), {}, "numbers with a sign, such as '50%'"),
    "amounts": ("a.csv", rows("10 km", "12 km"), {}, "numbers with a unit, such as '10 km'"),
    "vectors of 0 and 1": (
        "a.jsonl",
        lines({"text": "a", "label": [1, 0, 1]}, {"text": "b", "label": [0, 1, 0]}),
        {},
        r"holds vectors, such as \[1, 0, 1\]: write the labels of each row",
    ),
    "one-hot vectors": (
        "a.csv",
        'text,label\na,"[1, 0]"\nb,"[0, 1]"\n',
        {},
        "holds vectors",
    ),
    "vectors of numpy": ("a.csv", "text,label\na,[1. 0. 0.]\nb,[0. 1. 1.]\n", {}, "holds vectors"),
    "vectors of truth": (
        "a.jsonl",
        lines({"text": "a", "label": [True]}, {"text": "b", "label": [False, True]}),
        {},
        "holds vectors",
    ),
    "vectors of fractions": (
        "a.jsonl",
        lines({"text": "a", "label": [0.5, 1.5]}, {"text": "b", "label": [0.25, 1]}),
        {},
        "holds vectors.*--kind labels takes the numbers as names",
    ),
    "what is no list": (
        "a.csv",
        rows("[np.str_('x')]", "[np.str_('y')]"),
        {"kind": "labels"},
        "in 2 rows: lines 2, 3; a list of labels holds words",
    ),
    "scores that 32 bits do not tell apart": (
        "a.csv",
        rows(*(1_700_000_000.5 + i for i in range(30))),
        {},
        "30 different scores, such as '1700000000.5', of which 1 differ in 32 bits: subtract",
    ),
    "prices as labels": ("a.csv", rows("$5", "€7.50"), {}, "numbers with a sign"),
    "blanks before quotes": ("a.csv", 'text, label\na, "x"\nb, "y"\n', {}, "write no blank after"),
    "columns instead of rows": (
        "a.json",
        json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}),
        {},
        "orient='records'",
    ),
    "lists instead of rows": (
        "a.json",
        json.dumps({"text": ["a", "b"], "label": ["x", "y"]}),
        {},
        "orient='records'",
    ),
    "a metric of numbers": ("a.csv", rows("x", "y"), {"metric": "r2"}, "'r2' is for numbers"),
    "a metric of two classes": ("a.csv", rows("x", "y", "z"), {"metric": "recall"}, "does not fit 3 classes"),
    "no metric": ("a.csv", rows("x", "y"), {"metric": "f2"}, "metric 'f2' is unknown"),
    "half a megabyte of names": (
        "a.csv",
        ",".join(f"column{i}" for i in range(50_000)) + "\n" + "a," * 49_999 + "a\n",
        {},
        "no column",
    ),
    "half a megabyte of classes": (
        "a.csv",
        rows(*(f"id{i}" for i in range(30_000)), ""),
        {},
        "missing in 1 row",
    ),
    "names of ten thousand letters": ("a.csv", f"{'n' * 10_000},label\nword,x\n", {}, "every label is 'x'"),
}


ASKED = {
    "no width": (rows("x", "x\u200b", "y"), "differ only by case, blanks or zeros"),
    "no-break space": (rows("x", "x\u00a0", "y"), "differ only by case, blanks or zeros"),
    "two ways to write é": (rows("caf\u00e9", "cafe\u0301", "y"), "differ only by case, blanks or zeros"),
    "labels that are joined": (rows("x|y", "x", "y"), "'x|y' beside the labels that it joins"),
    "all in brackets": (rows("(x)", "(y)"), "cells in brackets, such as '(x)'"),
    "lists and words": (
        rows("['x']", "x", "y"),
        "--kind labels takes them as lists of labels, --kind classes as",
    ),
    "lists of a database": (rows('"{x,y}"', "{x}", "{y}"), "cells in brackets, such as '{x,y}'"),
    "texts that Python would join": (rows("['x''y']", "['x']"), "cells in brackets, such as"),
    "lists of Python's names": (rows("[np.str_('x')]", "[np.str_('y')]"), "cells in brackets, such as"),
    "labels that are joined by commas": (rows('"x, y"', "x", "y"), "--kind labels takes several"),
}


ASKED |= {
    f"joined by {sign!r}": (f'text,label\na,x\nb,y\nc,"x{sign}y"\n', "beside the labels that it joins")
    for sign in ("/", "+", " & ", " ", "::", " and ", "\n", "_")
}
ASKED |= {
    f"{word} among whole numbers": (rows(0, 1, word), f"'{word}' beside whole numbers alone")
    for word in ("N/A", "None", "null", "#N/A", "-", "?")
}


@pytest.mark.parametrize(("content", "said"), ASKED.values(), ids=ASKED)
def test_is_asked(tmp_path, content, said):
    path = write(tmp_path, "a.csv", content)
    found = read_own_files("mine", path, path)
    [question] = found.schema.questions
    assert said in question
    with pytest.raises(ConfigurationError, match="to decide") as refused:
        read_own_files("mine", path, path, strict=True)
    assert len(str(refused.value)) <= 400


NUMBERS = [
    ["₹100", "₹200"], ["$5", "5 €"], ["100 EUR", "200 EUR"], ["3/5", "1/5"], ["1 000", "2 500"],
    ["1'000", "2'500"],
    ["１.５", "２.０"], ["١٫٥", "٢٫٥"], ["5°", "7°"], ["−1", "0", "1"], ["1\u202f000", "7"],
]  # fmt: skip


@pytest.mark.parametrize("labels", NUMBERS, ids=map(str, NUMBERS))
def test_numbers_that_are_not_plain_do_not_become_classes_without_an_order(tmp_path, labels):
    path = write(tmp_path, "a.csv", rows(*labels))
    with pytest.raises(
        ConfigurationError, match="write plain numbers, or --kind classes takes them as words"
    ):
        read_own_files("mine", path, path)
    found = read_own_files("mine", path, path, choices=Choices(kind="classes"), strict=True)
    assert set(found.task.labels) == set(labels)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    if name.startswith("folder"):
        path.mkdir()
    elif not name.startswith("absent"):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(("name", "content", "choices", "expected"), READ.values(), ids=READ)
def test_is_read(tmp_path, name, content, choices, expected):
    path = write(tmp_path, name, content)
    found = read_own_files("mine", path, path, choices=Choices(**choices), strict=True)
    split = found.splits["train"]
    if isinstance(expected, dict):
        assert {key: split[key] for key in expected} == expected
        assert found.task.labels == ("x", "y")
    elif isinstance(expected, tuple):
        assert found.task.labels == expected
    elif expected is not None:
        text = isinstance(expected[0], str)
        assert split[found.task.columns[0] if text else "label"] == expected
    assert len(str(found.schema)) < 6000


@pytest.mark.parametrize(("name", "content", "choices", "said"), REFUSED.values(), ids=REFUSED)
def test_is_refused_in_one_line(tmp_path, name, content, choices, said):
    path = write(tmp_path, name, content)
    with pytest.raises(ConfigurationError, match=said) as refused:
        read_own_files("mine", path, path, choices=Choices(**choices))
    message = str(refused.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) <= 400


def test_the_table_is_long_enough_to_mean_something():
    assert len(READ) + len(REFUSED) >= 80
