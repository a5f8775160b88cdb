"""Public data that ships with packages, as one of mteb's retrieval tasks and as a folder for `conan evaluate`."""

import io
import json
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from datasets import Audio, Dataset, Image
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

MEASURES = {
    "ndcg_at_10": "ndcg@10",
    "recall_at_5": "recall@5",
    "hit_rate_at_1": "hit@1",
    "map_at_10": "map@10",
    "mrr_at_10": "mrr@10",
}
FEATURES = {"image": Image(), "audio": Audio()}


def digits():
    """Handwritten digits of scikit-learn (UCI): a text finds the images of its digit."""
    from PIL import Image as Pil
    from sklearn.datasets import load_digits

    found, corpus, grades = load_digits(), {}, {}
    for number in range(40):
        file = io.BytesIO()
        Pil.fromarray((found.images[number] * 15).astype(np.uint8)).save(file, "PNG")
        corpus[f"image{number}"] = {"image": file.getvalue()}
        grades.setdefault(f"digit{found.target[number]}", {})[f"image{number}"] = 1
    return {f"digit{n}": {"text": f"a handwritten {n}"} for n in range(10)}, corpus, grades


def countries():
    """Names of countries (tzdata, public domain): a code finds its name."""
    import tzdata

    lines = (Path(tzdata.__file__).parent / "zoneinfo" / "iso3166.tab").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line and not line.startswith("#")][:40]
    corpus = {f"name-{code}": {"title": "Country", "text": name} for code, name in pairs}
    return {code: {"text": code} for code, _ in pairs}, corpus, {code: {f"name-{code}": 1} for code, _ in pairs}


def icons():
    """Icons of matplotlib, with transparency: a name finds its icon in both sizes."""
    import matplotlib

    files = sorted((Path(matplotlib.__file__).parent / "mpl-data" / "images").glob("*.png"))
    corpus = {file.stem: {"image": file.read_bytes()} for file in files}
    names = sorted({stem.removesuffix("_large") for stem in corpus})
    grades = {
        name: {stem: 2 - stem.endswith("_large") for stem in corpus if stem.removesuffix("_large") == name} for name in names
    }
    return {name: {"text": name.replace("_", " ")} for name in names}, corpus, grades


def tones():
    """Tones of several rates, some of them in stereo, found by a text."""
    from samples import flac

    corpus = {f"{rate}.{n}": {"audio": flac(0.3 + 0.1 * n, rate)} for rate in (8_000, 16_000, 44_100) for n in range(3)}
    return (
        {f"q{n}": {"text": f"sound {n}"} for n in range(3)},
        corpus,
        {f"q{n}": {key: 1 for key in corpus if key.endswith(f".{n}")} for n in range(3)},
    )


def sounds():
    """Sounds of pygame's examples (WAV, Ogg Vorbis, MP3; 8 to 44.1 kHz): a name finds its sound in each container."""
    files = [Path(str(file)) for file in distribution("pygame-ce").files or () if file.match("pygame/examples/data/*")]
    files = sorted(file for file in files if file.suffix in (".wav", ".ogg", ".mp3") and file.stem != "metadata")
    corpus = {file.name: {"audio": distribution("pygame-ce").locate_file(file).read_bytes()} for file in files}
    grades = {file.stem: {other.name: 1 for other in files if other.stem == file.stem} for file in files}
    return {name: {"text": f"the sound of {name.replace('_', ' ')}"} for name in grades}, corpus, grades


SETS = {"digits": digits, "countries": countries, "icons": icons, "tones": tones, "sounds": sounds}


def task_of(name):
    """One of the sets as mteb's task."""
    queries, corpus, grades = SETS[name]()
    kind = next(kind for kind in ("image", "audio", "text") if kind in next(iter(corpus.values())))

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name,
            description=name,
            dataset={"path": f"local/{name}", "revision": "1"},
            type="Retrieval" if kind == "text" else "Any2AnyRetrieval",
            category=f"t2{kind[0]}",
            modalities=["text"] if kind == "text" else ["text", kind],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            reference=None,
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

    def rows(entries):
        found = Dataset.from_list([{"id": key, **entry} for key, entry in entries.items()])
        return found.cast_column(kind, FEATURES[kind]) if kind in FEATURES and kind in found.column_names else found

    task = Task()
    split = RetrievalSplitData(queries=rows(queries), corpus=rows(corpus), relevant_docs=grades, top_ranked=None)
    task.dataset, task.data_loaded = {"default": {"test": split}}, True
    return task


def write_task(name, root):
    """One of the sets as a folder for `conan evaluate --tasks`."""
    queries, corpus, grades = SETS[name]()
    folder = root / name
    folder.mkdir()
    for file, entries in (("queries", queries), ("corpus", corpus)):
        lines = []
        for number, (key, entry) in enumerate(entries.items()):
            line = dict(entry)
            for kind, suffix in (("image", "png"), ("audio", "flac")):
                if kind in entry:
                    (folder / f"{number}.{suffix}").write_bytes(entry[kind])
                    line[kind] = f"{number}.{suffix}"
            lines.append(json.dumps({"_id": key, **line}))
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n"
        + "".join(f"{query}\t{entry}\t{grade}\n" for query, found in grades.items() for entry, grade in found.items())
    )
    (folder / "task.yaml").write_text(f"measures: {json.dumps([*MEASURES.values()])}\n")
    return folder


def scores(model, name):
    """mteb's scores of a model for one of the sets."""
    import mteb

    (result,) = mteb.evaluate(model, [task_of(name)], cache=None, show_progress_bar=False, co2_tracker=False).task_results
    return {measure: result.scores["test"][0][measure] for measure in MEASURES}
