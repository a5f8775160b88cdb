"""Miniatures of MMEB-V2 and V3 in exactly upstream's layout, beside what each task must be, spelled out by hand.

A part is a string or a tuple: ("image", path), ("audio", path, start, end), ("video", folder, names of frames), ("bytes", data).
"""

import csv
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lightning_conan.media import encode_audio
from samples import png


@dataclass
class Expected:
    """Candidates by the board's names, and queries with the labels and the pool that they must have; None for all."""

    candidates: dict = field(default_factory=dict)
    queries: list = field(default_factory=list)


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def image(path: Path, seed: int, format: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(32, 32, seed, format))


def frames(folder: Path, count: int, seed: int) -> tuple[str, str, list[str]]:
    """Frames of a video: of ten, eight are used; of fewer, all. Their order is that of their numbers."""
    for number in range(1, count + 1):
        image(folder / f"frame_{number}.jpg", 100 * seed + number, "JPEG")
    (folder / "notes.txt").write_text("no frame")
    used = [1, 2, 3, 4, 6, 7, 8, 10] if count == 10 else range(1, count + 1)
    return [f"frame_{number}.jpg" for number in used]


def images(root: Path) -> dict[str, Expected]:
    """One task of each kind: images to texts, texts to images, images to images; with and without captions."""
    base = root / "image-tasks/MMEB"
    for number in range(4):
        image(base / f"a/{number}.png", number)
    image(base / "a/twin.png", 1)  # ties with 1
    shown = [f"image-tasks/MMEB/a/{number}.png" for number in range(4)]
    found = {}
    token = "<|image_1|>"
    for name, end in (("ImageNet-1K", "\nName it"), ("OK-VQA", "\nName it"), ("MSCOCO_i2t", "\nName it")):
        rows = [
            {"qry_inst": f"{token}\nName it", "qry_text": "now" if n else "", "qry_img_path": f"a/{n}.png", "tgt_text": texts}
            for n, texts in enumerate((["dog", "cat", "cow"], ["cat", "dog", "dog", "cow"], ["cow", "owl", "cat"]))
        ]
        parquet(root / f"image-query/{name}/test-00000-of-00001.parquet", rows)
        queries = [
            ([("image", shown[n]), f"{end}{' now' if n else ''}\n"], [row["tgt_text"][0]], row["tgt_text"])
            for n, row in enumerate(rows)
        ]
        found[name] = Expected({text: [text] for text in ("dog", "cat", "cow", "owl")}, queries)
    for name, end, captions in (("WebQA", "\n", ["one", "two", "three"]), ("VisDial", "\n\n", ["", "", ""])):
        paths = ["a/1.png", "a/0.png", "a/twin.png"]
        row = {"qry_inst": "Find it.", "tgt_inst": f"{token}\nShow", "tgt_text": captions, "tgt_img_path": paths}
        parquet(root / f"image-query/{name}/test-00000-of-00001.parquet", [{**row, "qry_text": text} for text in ("A", "B")])
        found[name] = Expected(
            {
                path: [("image", f"image-tasks/MMEB/{path}"), f"\nShow{' ' * bool(word)}{word}\n"]
                for path, word in zip(paths, captions, strict=True)
            },
            [([f"Find it. {text}{end}"], paths[:1], paths) for text in ("A", "B")],
        )
    for name, captions in (("CIRR", ["", ""]), ("RefCOCO-Matching", ['"left"', '"right"'])):
        row = {"qry_inst": f"{token} Which?\n", "tgt_inst": f"{token}\nCrop", "tgt_text": captions, "qry_text": "red"}
        parquet(
            root / f"image-query/{name}/test-00000-of-00001.parquet",
            [{**row, "qry_img_path": f"a/{n}.png", "tgt_img_path": [f"a/{n}.png", "a/2.png"]} for n in (0, 1)],
        )
        bare = [text.strip('"') for text in captions]
        texts = [f"\nCrop {text}\n" if text else "\nCrop" for text in captions]
        names = [[f"a/{n}.png:{bare[0]}", f"a/2.png:{bare[1]}"] for n in (0, 1)]
        found[name] = Expected(
            {pair[k]: [("image", f"image-tasks/MMEB/{pair[k].partition(':')[0]}"), texts[k]] for pair in names for k in (0, 1)},
            [([("image", shown[n]), "\nWhich? red\n"], names[n][:1], names[n]) for n in (0, 1)],
        )
    return found


def videos(root: Path) -> dict[str, Expected]:
    """One task of each kind besides questions."""
    base, data = root / "video-tasks/frames", root / "video-tasks/data"
    found, ten = {}, {}
    for place, count in (("video_cls/SSv2/7", 10), ("video_cls/Breakfast/P1_milk", 3)):
        ten[place] = ("video", f"video-tasks/frames/{place}", frames(base / place, count, count))
    jsonl(data / "ssv2.jsonl", [{"video_id": 7, "pos_text": "push", "neg_text": ["pull", "push", "lift"]}])
    asked = " What actions or object interactions are being performed by the person in the video?"
    found["SmthSmthV2"] = Expected(
        {text: [text] for text in ("pull", "push", "lift")},
        [([ten["video_cls/SSv2/7"], asked], ["push"], ["pull", "push", "lift"])],
    )
    jsonl(data / "breakfast.jsonl", [{"video_id": "P1_milk", "pos_text": "milk"}])
    labels = ["pancake", "cereal", "sandwich", "scrambledegg", "friedegg", "coffee", "milk", "tea", "juice", "salad"]
    cooked = " Recognize the breakfast type that the person is cooking in the video. "
    found["Breakfast"] = Expected(
        {label: [label] for label in labels}, [([ten["video_cls/Breakfast/P1_milk"], cooked], ["milk"], None)]
    )
    retrieval = {
        "MSR-VTT": ("msr-vtt", lambda n: {"video_id": f"v{n}", "video": f"v{n}.mp4", "caption": f"clip {n}"},
                    "Find a video that contains the following visual content:"),
        "MSVD": ("msvd", lambda n: {"video_id": f"v{n}", "video": "", "caption": [f"clip {n}", "another"]},
                 "Find the video snippet that corresponds to the given summary:"),
        "DiDeMo": ("didemo", lambda n: {"video": f"somewhere/v{n}.avi", "caption": f"clip {n}"},
                   "Find a video that includes the following described scenes:"),
        "YouCook2": ("youcook2-val", lambda n: {"id": f"v{n}", "video_path": "", "sentence": f"clip {n}"},
                     "Find a video that demonstrates the following action while making a recipe:"),
        "VATEX": ("vatex", lambda n: {"videoID": f"v{n}", "enCap": [f"clip {n}"]},
                  "Select a video that fits the description provided:"),
    }  # fmt: skip
    for name, (file, row, told) in retrieval.items():
        jsonl(data / f"{file}.jsonl", [row(n) for n in range(2)])
        place = f"video_ret/data/ziyan/video_retrieval/{name}/frames" if name != "MSVD" else f"video_ret/{name}"
        found[name] = Expected(
            {
                f"v{n}": [
                    ("video", f"video-tasks/frames/{place}/v{n}", frames(base / place / f"v{n}", 2, n)),
                    " Understand the content of the provided video.",
                ]
                for n in range(2)
            },
            [([f"{told} clip {n}"], [f"v{n}"], None) for n in range(2)],
        )
    for name, file in (("QVHighlight", "qvhighlight"), ("Charades-STA", "charades_sta")):
        jsonl(data / f"{file}.jsonl", [{"query": "a jump", "video_path": "x/long.mp4"}])
        place = f"video_mret/{name}/long"
        (base / place).mkdir(parents=True)
        (base / place / "list.txt").write_text("a file among the folders")
        clips = {clip: frames(base / place / clip, 2, n) for n, clip in enumerate(("query", "positive_1", "negative_0"))}
        path = f"video-tasks/frames/{place}"
        found[name] = Expected(
            {
                f"{path}/{clip}": [("video", f"{path}/{clip}", clips[clip]), " Understand the content of the provided video."]
                for clip in ("negative_0", "positive_1")
            },
            [
                (
                    [
                        ("video", f"{path}/query", clips["query"]),
                        " Find the clip that corresponds to the described scene in the given video: a jump",
                    ],
                    [f"{path}/positive_1"],
                    [f"{path}/negative_0", f"{path}/positive_1"],
                )
            ],
        )
    place, root_of = "video_mret/MomentSeeker", "video-tasks/frames/video_mret/MomentSeeker"
    used = {name: frames(base / place / "video_frames" / name, 2, n) for n, name in enumerate(("a_1", "a_2", "b_3", "b_9"))}
    image(base / place / "query_shot.jpg", 5, "JPEG")
    row = {
        "query": "a door",
        "positive_frames": [{"output_path": "a/1.mp4"}, {"output_path": "a/2.mp4"}],
        "negative_frames": [{"output_path": "b/3.mp4"}],
    }
    jsonl(data / "momentseeker_1k6.jsonl", [{**row, "input_frames": shown} for shown in ("", "shot.jpg", "b/9.mp4")])
    at = {name: f"{root_of}/video_frames/{name}" for name in used}
    pool = [at["a_1"], at["a_2"], at["b_3"]]
    asked = [
        ["Find the clip that corresponds to the given text: a door"],
        [("image", f"{root_of}/query_shot.jpg"), " Select the video clip that aligns with the given text and image: a door"],
        [
            ("video", at["b_9"], used["b_9"]),
            " Find the clip that corresponds to the given sentence and video segment: a door",
        ],
    ]
    told = " Understand the content of the provided video clip."
    found["MomentSeeker"] = Expected(
        {at[name]: [("video", at[name], used[name]), told] for name in ("a_1", "a_2", "b_3")},
        [(parts, pool[:2], pool) for parts in asked],
    )
    return found


MVBENCH = (
    "episodic_reasoning action_sequence action_prediction action_antonym fine_grained_action unexpected_action object_existence "
    "object_interaction object_shuffle moving_direction action_localization scene_transition action_count moving_count "
    "moving_attribute state_change fine_grained_pose character_order egocentric_navigation counterfactual_inference"
).split()


def questions(root: Path) -> dict[str, Expected]:
    """The five tasks that ask about a video."""
    base, data = "video-tasks/frames/video_qa/video_qa", root / "video-tasks/data"
    told = (
        " Given a video and a question, select the most accurate answer from the provided candidates. "
        "Return only the exact text of your chosen answer. Question:  "
    )

    def shown(name: str) -> tuple:
        return ("video", f"{base}/{name}", frames(root / base / name, 2, len(name)))

    found = {}
    options = ["A. a ball.", "B. ball", "C. a. cat."]
    jsonl(data / "video-mme.jsonl", [{"question": "What?", "videoID": "m1", "options": options, "answer": "C"}])
    asked = f"{told}What?\nA. a ball.\nB. ball\nC. a. cat."
    found["Video-MME"] = Expected(
        {"A. a ball.": ["a ball"], "B. ball": ["ball"], "C. a. cat.": ["a. cat"]},
        [([shown("Video-MME/m1"), asked], ["C. a. cat."], options)],
    )
    row = {"video": 12, "question": "why", "answer": 1, **{f"a{n}": f"reason {n}" for n in range(5)}}
    jsonl(data / "nextqa.jsonl", [row])
    options = [f"reason {n}" for n in range(5)]
    lines = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCDE", options, strict=True))
    found["NExTQA"] = Expected(
        {option: [option] for option in options},
        [([shown("NExTQA/12"), f"{told}why\nOptions:\n{lines}"], ["reason 1"], options)],
    )
    options = ["A. to eat.", "B. to run."]
    jsonl(data / "egoschema.jsonl", [{"video_idx": "e1", "question": "Purpose?", "answer": "0", "option": options}])
    found["EgoSchema"] = Expected(
        {"A. to eat.": ["to eat"], "B. to run.": ["to run"]},
        [([shown("egoschema/e1"), f"{told}Purpose?A. to eat. B. to run."], ["A. to eat."], options)],
    )
    queries = []
    for n, subset in enumerate(MVBENCH):
        (data / "mvbench").mkdir(exist_ok=True)
        row = {"question": f"{subset}?", "video": "v.mp4", "candidates": ["yes", "no"], "answer": ["yes", "no"][n % 2]}
        (data / f"mvbench/{subset}.json").write_text(json.dumps([row]))
        asked = f"{told}{subset}?\nOptions:\n(A) yes\n(B) no"
        queries.append(([shown(f"MVBench/{subset}/v.mp4"), asked], [["(A) yes", "(B) no"][n % 2]], ["(A) yes", "(B) no"]))
    found["MVBench"] = Expected({"(A) yes": ["(A) yes"], "(B) no": ["(B) no"]}, queries)
    jsonl(data / "activitynetqa.jsonl", [{"video_name": "k", "question": "does it jump", "answer": "no"}])
    asked = f"{told}does it jump? (A) yes; (B) no."
    found["ActivityNetQA"] = Expected(
        {"yes": ["yes"], "no": ["no"]}, [([shown("ActivityNetQA/v_k"), asked], ["no"], ["yes", "no"])]
    )
    return found


def documents(root: Path) -> dict[str, Expected]:
    """Graded relevance; pages inside the corpus, and as files beside it, whose names VisRAG shortens."""
    found = {}
    prompt, told = (
        "Find a document image that matches the given query:",
        " Understand the content of the provided document image.",
    )
    long = "a page of which the name is longer than fifty characters altogether.v2.png"
    sets = {
        "ViDoRe_arxivqa": ("arxivqa_test_subsampled_beir", "test", [5, 6, 7], "", "{}.png"),
        "ViDoRe_esg_reports_v2_multilingual": ("esg_reports_v2", "test", [5, 6, 7], "esg_reports_v2_multilingual", "{}.png"),
        "VisRAG_ChartQA": ("VisRAG-Ret-Test-ChartQA", "train", ["x.png", "y.png", long], "VisRAG_ChartQA", None),
    }
    for name, (folder, split, pages, files, pattern) in sets.items():
        place = root / f"visdoc-tasks/data/{folder}"
        shard = f"{split}-00000-of-00001.parquet"
        data = {page: png(32, 32, 40 + n) for n, page in enumerate(pages)}
        inside = [{"corpus-id": page, "image": {"bytes": data[page], "path": None}} for page in pages]
        parquet(place / "corpus" / shard, inside)
        parquet(place / "queries" / shard, [{"query-id": n, "query": f"what {n}"} for n in range(2)])
        judged = [(0, 0, 1), (0, 1, 2), (0, 1, 1), (0, 2, 0), (1, 2, 1)]
        parquet(place / "qrels" / shard, [{"query-id": q, "corpus-id": pages[p], "score": s} for q, p, s in judged])
        candidates = {}
        for page in pages:
            file = f"visdoc-tasks/images/{files}/{pattern.format(page) if pattern else upstream_name(page)}"
            if files:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_bytes(data[page])
            candidates[page] = [("image", file) if files else ("bytes", data[page]), told]
        labels = [{pages[0]: 1, pages[1]: 2}, {pages[2]: 1}]
        found[name] = Expected(candidates, [([f"{prompt} what {n}"], labels[n], None) for n in range(2)])
    return found


def upstream_name(name: str) -> str:
    """Name of a page's file in VisRAG: at most 50 characters, an underscore and eight digits of the whole name's MD5."""
    base, dot, ext = name.rpartition(".")
    return base[:50] + "_" + hashlib.md5(name.encode()).hexdigest()[:8] + dot + ext


def tone(pitch: int, seconds: float = 0.4, format: str = "wav") -> bytes:
    return encode_audio(0.5 * torch.sin(torch.arange(int(seconds * 16_000)) * 0.02 * (pitch + 1)), 16_000, format)


def sound(root: Path, path: str, pitch: int, seconds: float = 0.4) -> tuple[str, str, float, float | None]:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(tone(pitch, seconds))
    return ("audio", path, 0.0, None)


def csv_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def audios(root: Path) -> dict[str, Expected]:
    """All eleven tasks; classes with numbers that do not occur, clips inside Parquet files and beside them."""
    base = root / "audio-tasks"
    found = {}

    def classes(name: str, told: str, pool: list[str], queries: list[tuple[tuple, str]]) -> None:
        found[name] = Expected({label: [label] for label in pool}, [([part, told], [label], pool) for part, label in queries])

    inside = [{"audio": {"bytes": tone(n), "path": None}} for n in range(3)]
    rows = [{**row, "label_id": n, "label": f"tone {n}"} for n, row in zip((0, 3, 1), inside, strict=True)]
    parquet(base / "nsynth-1k/eval/query.parquet", rows)
    clips = [(("bytes", tone(n)), f"tone {label}") for n, label in enumerate((0, 3, 1))]
    told = "Recognize the musical instrument category of the audio."
    classes("NSynth", told, ["tone 0", "tone 1", "2", "tone 3"], clips)
    for shard, part in enumerate((inside[:2], inside[2:])):  # two shards
        rows = [{**row, "target": 1 - shard, "category": ["rain", "dog"][shard]} for row in part]
        parquet(base / f"esc50/data/test-0000{shard}-of-00002.parquet", rows)
    clips = [(("bytes", tone(n)), ["rain", "rain", "dog"][n]) for n in range(3)]
    classes("ESC-50", "Recognize the environmental sound category of the audio.", ["dog", "rain"], clips)
    files = [sound(root, f"audio-tasks/urbansound8k/audio/fold{n}/{n}.wav", n) for n in range(2)]
    rows = [{"slice_file_name": f"{n}.wav", "fold": n, "classID": n, "class": ["siren", "drill"][n]} for n in range(2)]
    csv_lines(base / "urbansound8k/csv_files/test.csv", rows)
    told = "Recognize the urban sound category of the audio."
    classes("UrbanSound8K", told, ["siren", "drill"], list(zip(files, ["siren", "drill"], strict=True)))
    files = [sound(root, f"audio-tasks/speechcommand-1k/eval/{n}.wav", n) for n in range(2)]
    far = "/data/somebody/MMEB-V3/audio-tasks/speechcommand-1k/eval"
    rows = [{"audio_path": f"{far}/{n}.wav", "label_id": n, "label_name": ["yes", "no"][n]} for n in range(2)]
    parquet(base / "speechcommand-1k/query_eval.parquet", rows)
    told = "Recognize the spoken word category in the audio."
    classes("SpeechCommands", told, ["yes", "no"], list(zip(files, ["yes", "no"], strict=True)))
    files = [sound(root, f"audio-tasks/creamD/AudioWAV/{n}.wav", n) for n in range(2)]
    csv_lines(base / "creamD/processed.csv", [{"file": f"{n}.wav", "emotion": ["sad", "happy"][n]} for n in range(2)])
    told = "Recognize the emotion expressed in the speech audio."
    classes("CREMA-D", told, ["happy", "sad"], list(zip(files, ["sad", "happy"], strict=True)))
    return found | retrieved(root) | events(root)


def retrieved(root: Path) -> dict[str, Expected]:
    """Retrieval from and by audio."""
    base, found = root / "audio-tasks", {}
    shard = "00000-of-00001.parquet"
    place = base / "sounddescs-1k/eval"
    parquet(
        place / f"corpus-{shard}", [{"corpus-id": f"c{n}", "audio_bytes": tone(n), "audio_path": f"{n}.wav"} for n in range(4)]
    )
    parquet(place / f"query-{shard}", [{"query-id": f"q{n}", "text": f" bell {n} "} for n in range(2)])
    judged = [("q0", "c3", 1), ("q0", "c0", 2), ("q1", "c1", 1), ("q1", "c2", 0)]
    parquet(place / f"qrels-{shard}", [{"query-id": q, "corpus-id": c, "score": s} for q, c, s in judged])
    told, pool = "Retrieve audio samples that best match the given sound description.", ["c0", "c1", "c3"]
    found["SoundDescs"] = Expected(
        {name: [("bytes", tone(int(name[1]))), "[AUDIO]"] for name in pool},
        [([f"{told}\nQuery: bell {n}"], [f"c{n}"], pool) for n in range(2)],
    )
    row = {f"caption_{n}": f"words {n}" for n in range(1, 5)} | {"caption_5": ""}
    csv_lines(base / "clotho/clotho_captions_evaluation.csv", [{"file_name": f"{n} a.wav", **row} for n in range(2)])
    files = {f"{n} a.wav": sound(root, f"audio-tasks/clotho/evaluation/{n} a.wav", n) for n in range(2)}
    told = "Retrieve audio clips that best match the given textual description."
    found["Clotho"] = Expected(
        {name: [part, "[AUDIO]"] for name, part in files.items()},
        [([f"{told}\nQuery: words {n}"], [name], None) for name in files for n in range(1, 5)],
    )
    place = "audio-tasks/AVE/AVE_Dataset"
    lines = ["Category&VideoID&Quality&StartTime&EndTime", "Bell&zz&good&0&10", "Dog&aa&good&2&7", ""]
    (root / place).mkdir(parents=True)
    (root / place / "testSet.txt").write_text("\n".join(lines))
    shown = {
        name: ("video", f"{place}/frames/{name}", frames(root / place / "frames" / name, 2, n))
        for n, name in enumerate(("aa", "zz"))
    }
    clips = [sound(root, f"{place}/audios/zz_zz_0_10.wav", 0), sound(root, f"{place}/audios/aa_aa_2_7.wav", 1)]
    told = "Retrieve the video that best matches the given audio event."
    found["AVE"] = Expected(
        {name: [part, " Understand the content of the provided video."] for name, part in shown.items()},
        [([clip, told], [name], ["aa", "zz"]) for clip, name in zip(clips, ("zz", "aa"), strict=True)],
    )
    place, pages = base / "speechcoco-1k", [png(32, 32, n) for n in range(2)]
    parquet(place / f"corpus-{shard}", [{"corpus-id": f"{n}", "image": {"bytes": pages[n], "path": ""}} for n in range(2)])
    rows = [{"id": f"s{n}", "audio": {"bytes": tone(n), "path": ""}, "image_id": f"{n % 2}"} for n in range(3)]
    parquet(place / f"query-{shard}", rows)
    told = "Retrieve images that best match the given spoken description."
    found["SpeechCOCO"] = Expected(
        {f"{n}": [("bytes", pages[n]), " Understand the content of the provided image."] for n in range(2)},
        [([("bytes", tone(n)), told], [f"{n % 2}"], None) for n in range(3)],
    )
    return found


def events(root: Path) -> dict[str, Expected]:
    """A recording of 3.2 s with three events, two of one label; one has no length."""
    place = "audio-tasks/tutsound/TUT-sound-events-2017-development"
    path = f"{place}/audio/street/a.wav"
    sound(root, path, 3, 3.2)
    lines = [
        "audio/street/a.wav\tstreet\t0.0\t0.5\tcar",
        "audio/street/a.wav\tstreet\t2.0\t2.0\tbird",
        "audio/street/a.wav\tstreet\t3.0\t9.0\tcar",
    ]
    for fold in range(1, 5):
        file = root / place / f"evaluation_setup/street_fold{fold}_evaluate.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n" if fold == 2 else "")
    # Windows of 1 s each 0.5 s: 0.0 and 2.5 overlap with cars by more than 0.1 of the span, 1.5 and 2.0 by 0.05 with the bird.
    spans = [(0.0, 0.5), (2.0, 2.05), (3.0, 3.2), (0.5, 1.5), (1.0, 2.0), (1.5, 2.5), (2.0, 3.0)]
    told = "Retrieve the sound event categories that best match the given audio."
    name = {span: f"audio/street/a.wav|{span[0]:.3f}-{span[1]:.3f}" for span in spans}
    pool = list(name.values())
    candidates = {name[span]: [("audio", path, *span), told] for span in spans}
    right = {"TUTSound": [(0, 2), (1,), (0, 2)], "TUTSound(hard)": [(0,), (1,), (2,)]}
    return {
        task: Expected(
            candidates,
            [
                ([("audio", path, 0.0, None), f"{told}\nQuery: {label}"], [pool[n] for n in labels], pool)
                for label, labels in zip(("car", "bird", "car"), found, strict=True)
            ],
        )
        for task, found in right.items()
    }


def texts(root: Path) -> dict[str, Expected]:
    """One task of each layout: judgements inside the queries, instructions, titles, and a document without text."""
    base, found = root / "text-tasks", {}
    documents = {f"d{n}": [f"document {n}"] for n in range(4)}
    rows = [{"id": name, "content": parts[0]} for name, parts in documents.items()]
    parquet(base / "BRIGHT/documents/aops-00000-of-00001.parquet", rows)
    rows = [{"id": f"{n}", "query": f"why {n}", "gold_ids": [f"d{n}", "d3"]} for n in range(2)]
    parquet(base / "BRIGHT/examples/aops-00000-of-00001.parquet", rows)
    found["aops"] = Expected(documents, [([f"why {n}"], {f"d{n}": 1, "d3": 1}, None) for n in range(2)])
    for collection, name, changed, og in (
        ("FollowIR", "news21-instructions", "", "Only news."),
        ("InfoSearch", "Length-v1", "In short.", ""),
    ):
        place = base / collection / name
        jsonl(place / "corpus.jsonl", [{"_id": key, "title": "Title", "text": parts[0]} for key, parts in documents.items()])
        row = {"instruction_og": og or "not this", "instruction_changed": changed or "nor this"}
        jsonl(place / "queries.jsonl", [{"_id": f"q{n}", "text": f"who {n}", **row} for n in range(2)])
        judged = [("q0", "d1", 2), ("q0", "d2", 1), ("q0", "d0", 0)]
        jsonl(place / "qrels_og/test.jsonl", [{"query-id": q, "corpus-id": d, "score": s} for q, d, s in judged])
        found[name] = Expected(
            {key: [f"Title\n{parts[0]}"] for key, parts in documents.items()},
            [([f"{og or changed} who {n}"], {"d1": 2, "d2": 1} if n == 0 else {}, None) for n in range(2)],
        )
    place, shard = base / "NanoBEIR/NanoNQ", "train-00000-of-00001.parquet"
    parquet(place / "corpus" / shard, [{"_id": f"d{n}", "text": f"document {n}" if n else ""} for n in range(4)])
    parquet(place / "queries" / shard, [{"_id": "q", "text": "which"}])
    parquet(place / "qrels" / shard, [{"query-id": "q", "corpus-id": f"d{n}"} for n in (0, 2)])
    kept = {name: parts for name, parts in documents.items() if name != "d0"}
    found["NanoNQ"] = Expected(kept, [(["which"], {"d0": 1, "d2": 1}, None)])  # d0 counts, and cannot be found
    for collection, name, file in (
        ("LongEmbed", "needle", "queries"),
        ("R2MED", "Biology", "query"),
        ("MultiConIR_v2", "Legal Document", "queries"),
    ):
        place = base / collection / name
        jsonl(place / "corpus.jsonl", [{"doc_id": key, "text": parts[0]} for key, parts in documents.items()])
        jsonl(place / f"{file}.jsonl", [{"qid": "7", "text": "where"}])
        jsonl(
            place / "qrels.jsonl",
            [{"qid": "7", "doc_id": "d2"}] if collection == "LongEmbed" else [{"q_id": 7, "p_id": "d2", "label": 1.0}],
        )
        found[name] = Expected(documents, [(["where"], {"d2": 1}, None)])
    return found


def omniset(root: Path) -> dict[str, Expected]:
    """Three contents in four modalities, of which one is the first's only hard negative, and its own too: once is enough."""
    base, kinds = root / "omniset", {"t": ("text", "txt"), "i": ("image", "jpg"), "v": ("video", "mp4"), "a": ("audio", "wav")}
    stems = {n: f"COCO_val2014_{n:012d}" for n in (4, 5, 6)}
    candidates, parts = {}, {}
    told = " Represent the given text, image, video, or audio."
    for n, stem in stems.items():
        image(base / f"val2014/{stem}.jpg", n, "JPEG")
        parts[n] = {
            "t": f"caption {n}",
            "i": ("image", f"omniset/val2014/{stem}.jpg"),
            "v": ("video", f"omniset/frames_omni/{stem}", frames(base / "frames_omni" / stem, 2, n)),
            "a": sound(root, f"omniset/audios/{stem}.wav", n),
        }
        for kind, (_, suffix) in kinds.items():
            text = {"t": [], "a": [told + " "]}.get(kind, [told])
            candidates[f"{stem}.{suffix}"] = [parts[n][kind], *text]
    jsonl(base / "catalog.jsonl", [{"image_id": n, "captions": [f"caption {n}", "another"]} for n in stems])
    jsonl(
        base / "omniset.jsonl", [{"image_id": 4, "hard_negatives": [5, 4]}, {"image_id": 6, "hard_negatives": [5], "objects": []}]
    )
    found = {}
    for given, (kind, _) in kinds.items():
        for wanted, (other, suffix) in kinds.items():
            if given == wanted:
                continue
            asked = f"Find the {other} that best matches the given {kind}: "
            queries = []
            for n, pool in ((4, (4, 5)), (6, (6, 5))):
                query = [f"{asked}caption {n}"] if given == "t" else [parts[n][given], asked]
                names = [f"{stems[m]}.{ending}" for m in pool for _, ending in kinds.values()]
                queries.append((query, [f"{stems[n]}.{suffix}"], names))
            used = {name: candidates[name] for _, _, names in queries for name in names}
            found[f"OmniSET_{given}2{wanted}"] = Expected(used, queries)
    return found
