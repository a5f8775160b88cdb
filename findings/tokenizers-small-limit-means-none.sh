#!/usr/bin/env bash
# tokenizers 0.23.3: a limit that is smaller than the number of special tokens truncates nothing.
#
# The special tokens that the post-processor will add are subtracted from max_length; below zero the number wraps around to a huge one, and the whole text comes
# through, with all its special tokens. So a limit of 2 gives an empty text in its special tokens, and a limit of 1 gives all of it; a pair (three special
# tokens) does so from 2 down. No error is raised, where "only_first" and "only_second" do raise one when a text is too short to obey. A limit that is computed,
# as for what is left beside a prompt or a picture's tokens, reaches this, and the model gets the longest input in place of the shortest.
#
# Seen, for five words: limit 3 gives 3 tokens, 2 gives 2, 1 gives 7; for a pair of three words each: 3 gives 3, 2 and 1 give 9. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - <<'END'
import sys
import tokenizers
from tokenizers import models, pre_tokenizers, processors

words = ["[UNK]", "[CLS]", "[SEP]", *"abcdef"]
tokenizer = tokenizers.Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
)

def lengths(*texts):
    found = {}
    for limit in (3, 2, 1):
        tokenizer.enable_truncation(limit)
        found[limit] = len(tokenizer.encode(*texts).ids)
    return found

single, pair = lengths("a b c d e"), lengths("a b c", "d e f")
print("tokenizers", tokenizers.__version__, "tokens by limit: one text", single, "a pair", pair)
sys.exit(0 if single == {3: 3, 2: 2, 1: 7} and pair == {3: 3, 2: 9, 1: 9} else "changed")
END
