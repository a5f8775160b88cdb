"""M-BEIR, queries with instructions over one pool (UniIR, https://arxiv.org/abs/2311.17136)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.sources.layout import Layout, Line, owner, plain, read_rows
from datamodules.sources.manifest import Fault, json_lines


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads M-BEIR (UniIR): a query JSONL with pos_cand_list and neg_cand_list, and a candidate pool JSONL by did.

    Every positive makes a pair. ``media`` is the folder that image paths are relative to, below the query file's.

    Args:
        source: File or folder.
        how: Options of reading.
    """
    if how.candidates is None:
        raise ValueError("mbeir needs the candidate pool's JSONL, got candidates=null. Name it with --read.candidates.")
    pool = {entry["did"]: entry for _, entry in json_lines(how.candidates)}
    prompts: dict[tuple[str, str, str], str] = {}
    if how.instructions is not None:
        for _, row in read_rows(how.instructions):
            prompts[row["dataset_id"], row["query_modality"], row["cand_modality"]] = row["prompt_1"]

    def side(text: str | None, image: str | None) -> dict[str, Any]:
        return ({"image": str(Path(how.media) / image)} if image else {}) | ({"text": text} if text else {})

    for where, entry in json_lines(source):
        query = side(entry.get("query_txt"), entry.get("query_img_path"))
        negatives = entry.get("neg_cand_list") or []
        wrong = [pool[did] for did in negatives if did in pool]
        for did in [*entry["pos_cand_list"], *negatives]:
            if did not in pool:
                yield where, Fault(where, mbeir_key(entry["qid"], did), "sample", f"{did} is not in {how.candidates}")
        for did in entry["pos_cand_list"]:
            if did not in pool:
                continue
            right, data_set = pool[did], entry["qid"].split(":")[0]
            prompt = prompts.get((data_set, entry["query_modality"], right["modality"]))
            target = side(right.get("txt"), right.get("img_path"))
            made: dict[str, Any] = {"key": mbeir_key(entry["qid"], did)}
            made |= {"task": how.task or plain(source.stem), "modality": owner(query, target)}
            made["target"] = target
            made["query"] = query | ({"instruction": prompt} if prompt else {})
            made["negatives"] = [side(item.get("txt"), item.get("img_path")) for item in wrong]
            yield where, made


def mbeir_key(query: str, candidate: str) -> str:
    """Key of a pair, from ids such as 9:1.

    Args:
        query: Id of the query.
        candidate: Id of the candidate.
    """
    return plain(f"{query}-{candidate}".replace(":", "-"))
