"""The five video tasks of MMEB that ask a question with options."""

from collections.abc import Iterator
from functools import partial

from lightning_conan.boards.mmeb.data import Data, Row, rows_of
from lightning_conan.boards.mmeb.prompts import behind, lettered
from lightning_conan.boards.mmeb.task import Draft, Spec, together
from lightning_conan.boards.mmeb.video import FRAME_FOLDERS, among, annotations

QUESTION = (
    "Given a video and a question, select the most accurate answer from the provided candidates. Return only the exact text of "
    "your chosen answer. Question: "
)
MVBENCH = (
    *("episodic_reasoning", "action_sequence", "action_prediction", "action_antonym", "fine_grained_action", "unexpected_action"),
    *("object_existence", "object_interaction", "object_shuffle", "moving_direction", "action_localization", "scene_transition"),
    *("action_count", "moving_count", "moving_attribute", "state_change", "fine_grained_pose", "character_order"),
    *("egocentric_navigation", "counterfactual_inference"),
)
LETTERS = "ABCD"
YES_OR_NO = ["yes", "no"]


def ask(data: Data, draft: Draft, video: str, question: str, options: dict[str, str], answer: str) -> None:
    """Adds a question.

    Args:
        data: Folder of the data.
        draft: The task.
        video: Folder of the video's frames, below that of the task.
        question: The question as the prompt shows it, its options included.
        options: The board's name of each candidate, and its text.
        answer: Name of the right one.
    """
    name = draft.spec.name
    published = f"{FRAME_FOLDERS}/video_qa/video_qa/{'egoschema' if name == 'EgoSchema' else name}"
    root = data.folder(published, f"{FRAME_FOLDERS}/video_qa/{name}")
    pool = [draft.entry(option, partial(together, text)) for option, text in options.items()]
    draft.query([data.frames(f"{root}/{video}"), behind(QUESTION, question)], [among(answer, list(options), draft)], pool)


def bare(option: str) -> str:
    """Text of an option such as ``A. a red ball.``"""
    return option[option.find(". ") :].strip(". ")


def with_options(question: str, options: list[str]) -> str:
    """A question above its lettered options.

    Args:
        question: The question.
        options: Its options.
    """
    return "\n".join([question, "Options:", *lettered(options)]).rstrip()


def video_mme(data: Data, draft: Draft) -> None:
    """Reads Video-MME: options come with their letters, candidates without.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    for row in rows_of(annotations(data, "video-mme"), ("question", "videoID", "options", "answer")):
        options = row["options"]
        question = "\n".join([row["question"], *options])
        answer = options[LETTERS.index(row["answer"])]
        ask(data, draft, str(row["videoID"]), question, {option: bare(option) for option in options}, answer)


def next_qa(data: Data, draft: Draft) -> None:
    """Reads NExTQA: five options in columns, the answer by its number.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    columns = [f"a{number}" for number in range(5)]
    for row in rows_of(annotations(data, "nextqa"), ("video", "question", "answer", *columns)):
        options = [row[column] for column in columns]
        question = with_options(row["question"], options)
        ask(data, draft, str(row["video"]), question, {option: option for option in options}, options[int(row["answer"])])


def ego_schema(data: Data, draft: Draft) -> None:
    """Reads EgoSchema: options follow the question at once, the answer by its number.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    for row in rows_of(annotations(data, "egoschema"), ("video_idx", "question", "answer", "option")):
        options = row["option"]
        question = row["question"] + " ".join(options)
        answer = options[int(row["answer"])]
        ask(data, draft, str(row["video_idx"]), question, {option: bare(option) for option in options}, answer)


def mv_bench(data: Data, draft: Draft) -> None:
    """Reads MVBench: twenty subsets, candidates with their letters.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    for subset, row in subsets(data):
        options = lettered(row["candidates"])
        answer = options[row["candidates"].index(among(row["answer"], row["candidates"], draft))]
        question = with_options(row["question"], row["candidates"])
        ask(data, draft, f"{subset}/{row['video']}", question, {option: option for option in options}, answer)


def subsets(data: Data) -> Iterator[tuple[str, Row]]:
    """Yields the rows of MVBench's subsets.

    Raises:
        MissingError: A subset is not there.
    """
    files = data.each(*([f"video-tasks/data/mvbench/{subset}.json"] for subset in MVBENCH))
    for subset, found in zip(MVBENCH, files, strict=True):
        for row in rows_of(found, ("question", "video", "candidates", "answer")):
            yield subset, row


def activity_net(data: Data, draft: Draft) -> None:
    """Reads ActivityNetQA: yes or no.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    for row in rows_of(annotations(data, "activitynetqa"), ("video_name", "question", "answer")):
        question = f"{row['question']}? (A) yes; (B) no."
        ask(data, draft, f"v_{row['video_name']}", question, {option: option for option in YES_OR_NO}, row["answer"])


SPECS = (
    Spec("Video-MME", "video", "video/V-QA", video_mme),
    Spec("NExTQA", "video", "video/V-QA", next_qa),
    Spec("EgoSchema", "video", "video/V-QA", ego_schema),
    Spec("MVBench", "video", "video/V-QA", mv_bench),
    Spec("ActivityNetQA", "video", "video/V-QA", activity_net),
)
