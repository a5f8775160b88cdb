"""Audio retrieval of MMEB-V3: SoundDescs and Clotho by text, AVE's videos and SpeechCOCO's images by audio.

Each has a folder in ``audio-tasks``. What upstream's own code makes from AVE's videos before it runs (clips in ``audios``, images
in ``frames``) must be there.
"""

from functools import partial
from typing import Any

from lightning_conan.boards.mmeb import audio_classes, tut_sound
from lightning_conan.boards.mmeb.data import Cell, Data, MediaColumn, rows_of
from lightning_conan.boards.mmeb.prompts import behind
from lightning_conan.boards.mmeb.sounds import ROOT, first, sounds
from lightning_conan.boards.mmeb.task import Draft, Part, Spec, together

CAPTIONS = [f"caption_{number}" for number in range(1, 6)]
CLOTHO = "Retrieve audio clips that best match the given textual description."
SOUND_DESCS = "Retrieve audio samples that best match the given sound description."
SPEECH_COCO = "Retrieve images that best match the given spoken description."
AVE = "Retrieve the video that best matches the given audio event."
VIDEO = "Understand the content of the provided video."
IMAGE = "Understand the content of the provided image."
AUDIO = "[AUDIO]"
"""Text of the audio candidates of SoundDescs and Clotho."""


def asked(instruction: str, text: str) -> str:
    """A text query below its instruction.

    Args:
        instruction: The task's.
        text: The query.
    """
    return f"{instruction}\nQuery: {text.strip()}"


def sound_descs(data: Data, draft: Draft) -> None:
    """Reads SoundDescs: texts among the clips that are relevant to any of them; the one of the highest grade counts.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    folder = f"{ROOT}/sounddescs-1k"
    queries, corpus, judged = data.each(*([f"{folder}/eval/{part}*.parquet"] for part in ("query", "corpus", "qrels")))
    grades: dict[str, dict[str, Any]] = {}
    for row in rows_of(judged, ("query-id", "corpus-id", "score")):
        if row["score"] > 0:
            grades.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = row["score"]
    rows = [(first(row, "query-id", "query_id", "id", "qid"), row) for row in rows_of(queries)]
    wanted = {entry for query, _ in rows for entry in grades.get(query, {})}
    for row, part in sounds(data, corpus, f"{folder}/eval", ("corpus-id", "id")):
        if (name := first(row, "corpus-id", "id")) in wanted:
            draft.entry(name, partial(together, part, AUDIO))
    pool = list(draft.numbers.values())
    for query, row in rows:
        found = grades.get(query, {})
        text = asked(SOUND_DESCS, first(row, "text", "caption", "sentence", "query"))
        draft.query([text], [max(found, key=lambda entry: found[entry])] if found else [], pool)


def clotho(data: Data, draft: Draft) -> None:
    """Reads Clotho: five captions a clip, among all clips of the split.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    folder = f"{ROOT}/clotho"
    files = data.files(f"{folder}/clotho_captions_evaluation.csv", f"{folder}/clotho_captions_development.csv")
    split = files[0].stem.rpartition("_")[2]
    clips = data.folder(f"{folder}/{split}", f"{folder}/clotho/{split}")
    for row in rows_of(files, ("file_name", *CAPTIONS)):
        name = row["file_name"]
        draft.entry(name, partial(together, data.media("audio", f"{clips}/{name}"), AUDIO))
        for column in CAPTIONS:
            if row[column]:
                draft.query([asked(CLOTHO, row[column])], [name])


def ave(data: Data, draft: Draft) -> None:
    """Reads AVE: clips of audio among the videos that they are from.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    folder = data.folder(f"{ROOT}/AVE/AVE_Dataset", f"{ROOT}/ave/AVE/AVE_Dataset")
    (listed,) = data.files(f"{folder}/testSet.txt")
    lines = [line.strip().split("&") for line in listed.read_text(encoding="utf-8").split("\n")]
    rows = [fields[:5] for fields in lines if len(fields) >= 5 and fields[0] != "Category"]

    def video_of(name: str) -> tuple[Part, ...]:
        return data.frames(f"{folder}/frames/{name}"), behind(VIDEO)

    for video in sorted({video for _, video, *_ in rows}):
        draft.entry(video, partial(video_of, video))
    pool = list(draft.numbers.values())
    for _, video, _, start, end in rows:
        name = f"{video}_{video}_{int(float(start))}_{int(float(end))}.wav"
        draft.query([data.media("audio", f"{folder}/audios/{name}"), AVE], [video], pool)


def speech_coco(data: Data, draft: Draft) -> None:
    """Reads SpeechCOCO: spoken captions among all images.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    folder = f"{ROOT}/speechcoco-1k"
    places = ("{0}/*{1}*.parquet", "{0}/eval/*{1}*.parquet", "{0}/{1}/*.parquet")
    queries, corpus = data.each(*([place.format(folder, part) for place in places] for part in ("query", "corpus")))
    images = MediaColumn(corpus, "image")
    for number, row in enumerate(rows_of(corpus, (), ("corpus-id", "id"))):
        name = first(row, "corpus-id", "id")
        draft.entry(name, partial(together, Cell(images, number, "image", f"{folder}/image {name}"), behind(IMAGE)))
    for row, part in sounds(data, queries, folder, ("image_id", "image_name", "id")):
        name = first(row, "image_id", "image_name", "id")
        if name not in draft.numbers:
            data.missing.append(f"{folder}: image {name}")
        draft.query([part, SPEECH_COCO], [name])


SPECS = (
    *audio_classes.SPECS,
    Spec("SoundDescs", "audio", "audio/retrieval", sound_descs),
    Spec("Clotho", "audio", "audio/retrieval", clotho),
    Spec("AVE", "audio", "audio/retrieval", ave),
    Spec("SpeechCOCO", "audio", "audio/retrieval", speech_coco),
    *tut_sound.SPECS,
)
