#!/usr/bin/env bash
# tantivy 0.27.0 (Python): words of 40 or more bytes of UTF-8 are neither indexed nor searched for: a SHA-1 is never found, an MD5 is; long Chinese runs neither.
#
# The default tokenizer cuts at characters that are no letters or digits and then drops tokens of 40 bytes on. It counts bytes: 20 Cyrillic letters, or 14
# Chinese ones, are enough, and since Chinese is written without spaces a whole clause is one token. Such a document is stored and counted, the query
# becomes an empty one, and the result is an empty list, with no error or warning at either side. German compounds, digests, base64 and long identifiers are
# concerned too. A hybrid search over such a corpus falls back to its dense half without telling. Register an analyzer of one's own
# (TextAnalyzerBuilder, with Filter.remove_long of a greater limit, or an n-gram tokenizer).
#
# Seen: of seven documents, each searched for by its own text, those of 32 (MD5), 39 (13 Chinese letters) and 38 bytes (19 Cyrillic ones) are found; those of
# 40 (SHA-1), 42 (14 Chinese letters), 40 (20 Cyrillic ones) and 45 (one German word) are not. With remove_long(256) all are. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tantivy==0.27.0
"$folder/venv/bin/python" - <<'END'
import hashlib
import sys
from importlib.metadata import version
import tantivy

TEXTS = {
    "md5": hashlib.md5(b"x").hexdigest(),
    "sha1": hashlib.sha1(b"x").hexdigest(),
    "chinese 13": "一二三四五六七八九十百千万",
    "chinese 14": "天地玄黄宇宙洪荒日月盈昃辰宿",
    "cyrillic 19": "а" * 19,
    "cyrillic 20": "б" * 20,
    "german": "Rindfleischetikettierungsüberwachungsaufgabe",
}

def found(tokenizer):
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name=tokenizer)
    builder.add_text_field("name", stored=True, tokenizer_name="raw")
    index = tantivy.Index(builder.build())
    longer = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.remove_long(256)).filter(tantivy.Filter.lowercase())
    index.register_tokenizer("longer", longer.build())
    writer = index.writer(15_000_000)
    for name, text in TEXTS.items():
        writer.add_document(tantivy.Document(text=text, name=name))
    writer.commit()
    index.reload()
    searcher = index.searcher()
    hits = {name: searcher.search(index.parse_query(text, ["text"]), 10).hits for name, text in TEXTS.items()}
    return searcher.num_docs, {name: [searcher.doc(place)["name"][0] for _, place in those] for name, those in hits.items()}

(count, plain), (_, longer) = found("default"), found("longer")
print("tantivy", version("tantivy"), {name: len(text.encode()) for name, text in TEXTS.items()}, "\ndefault", plain, "\nlonger ", longer)
expected = {name: [name] if len(text.encode()) < 40 else [] for name, text in TEXTS.items()}
sys.exit(0 if count == len(TEXTS) and plain == expected and longer == {name: [name] for name in TEXTS} else "changed")
END
