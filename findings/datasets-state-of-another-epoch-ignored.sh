#!/usr/bin/env bash
# datasets 5.2.0: the state of an iterable data set that was saved in its second epoch is dropped in silence when a new process loads it.
#
# `state_dict()` holds the epoch and the place in it. `load_state_dict` compares the epoch with the data set's own, sets nothing, and goes to the place only
# if the two are equal. A resumed program has a new data set, whose epoch is 0: it begins at the first row of epoch 0, in that epoch's order, with rows
# that were already seen and with no error or warning. In the first epoch, where one tries it, everything is right. StatefulDataLoader and
# trainers that hand the state through rely on it. Call `set_epoch(state["epoch"])` before or after loading, and before iterating.
#
# Seen, for twelve rows in six shards, shuffled, stopped after four rows of epoch 1: eight rows were left; the loaded data set says epoch 0 and gives twelve
# rows, epoch 0's, from its beginning; with set_epoch(1) it gives the eight. Stopped in epoch 0, it gives the eight without help. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
"$folder/venv/bin/python" - <<'END'
import sys
import warnings
import datasets

def made():
    rows = datasets.Dataset.from_dict({"row": list(range(12))})
    return rows.to_iterable_dataset(num_shards=6).shuffle(seed=3, buffer_size=1)

def stopped(epoch):
    data = made()
    data.set_epoch(epoch)
    rows = iter(data)
    for _ in range(4):
        next(rows)
    state = data.state_dict()
    return state, [row["row"] for row in rows]

def resumed(state, epoch=None):
    data = made()
    data.load_state_dict(state)
    if epoch is not None:
        data.set_epoch(epoch)
    return data.epoch, [row["row"] for row in data]

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    (first, left), (second, due) = stopped(0), stopped(1)
    same, alone, told = resumed(first)[1], resumed(second), resumed(second, epoch=1)[1]
begin = [row["row"] for row in made()]
print(f"datasets {datasets.__version__} state's epoch {second['epoch']}\ndue    {due}\nloaded {alone}\ntold   {told}\nwarnings {len(said)}")
expected = second["epoch"] == 1 and len(due) == 8 and alone == (0, begin) and len(begin) == 12
sys.exit(0 if expected and told == due and same == left else "changed")
END
