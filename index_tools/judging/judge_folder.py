"""A judge's folder: an encoder as an ONNX file, a classifier, a tokenizer, and the record of what they are.

The judge reads the query and the document in one of two ways. `apart` makes a vector of each, and the classifier reads
their product, their difference and their cosine. `joint` makes one text of both, and the classifier reads the vector of
its first token. `querylift judge export` writes the folder. No training package is needed to read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.index_tools.judging.grader import PredictedGrade, QueryDocumentPair
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import load_tokenizer, open_onnx_session
from querylift.plugin.files import compute_file_digest, open_for_replacement

if TYPE_CHECKING:
    import numpy as np

    Vector = np.ndarray[Any, np.dtype[np.float32]]

RECORD_FILE, MODEL_FILE, TOKENIZER_FILE, CLASSIFIER_FILE = (
    "judge.json",
    "judge.onnx",
    "tokenizer.json",
    "classifier.npz",
)
SERVED_FILES = (MODEL_FILE, TOKENIZER_FILE, CLASSIFIER_FILE)
"""The files of an exported judge beside its record, which holds their digests."""
Reading = Literal["apart", "joint"]
_FORMAT: Literal[1] = 1
_REMEDY = "export the judge again with `querylift judge export`"


class Agreement(BaseModel):
    """How well a judge agrees with a person who rated a sheet. The judge did not learn from the queries of the sheet.

    `queries` is their number, and `source` the name of the sheet. Both kappas are Cohen's: over all grades, and over
    relevant or not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: int
    kappa_grades: float
    kappa_relevant: float
    source: str


class JudgeRecord(BaseModel):
    """What judge.json holds. `thresholds` are the expected grades from which each grade above 0 is given.

    `query_tokens` and `document_tokens` are the most tokens that are read of each text. `files` has the SHA-256 of the
    served files by name; a trained judge that was not exported has none. `learned_queries` has digests of the queries
    that the judge learned from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = _FORMAT
    name: str
    teacher: str
    base: str
    reading: Reading
    scale_name: str
    meanings: tuple[str, ...]
    relevant_from: int
    thresholds: tuple[float, ...]
    query_tokens: int
    document_tokens: int
    annotations: int
    created: str
    agreement: Agreement | None = None
    files: Mapping[str, str] = {}
    learned_queries: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_thresholds(self) -> JudgeRecord:
        if len(self.thresholds) != len(self.meanings) - 1 or list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"thresholds are {self.thresholds}, not one rising number for each grade above 0")
        return self

    @property
    def scale(self) -> GradeScale:
        """The scale of the grades."""
        return GradeScale(self.scale_name, self.meanings, self.relevant_from)


def read_judge_record(folder: Path, *, writer: str = "querylift judge export") -> JudgeRecord:
    """Read the record of the judge in `folder`. Raises SettingsError when there is none, or when it is damaged.

    `writer` is the command that writes such folders.
    """
    remedy = f"run `{writer}` again"
    path = folder / RECORD_FILE
    try:
        return JudgeRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(
            f"{folder} holds no judge: {RECORD_FILE} cannot be read ({error.strerror}); "
            f"name a folder that `{writer}` wrote"
        ) from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or RECORD_FILE
        raise SettingsError(f"{path} is damaged ({place}: {fault['msg']}); {remedy}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON ({error}); {remedy}") from None


def write_judge_record(folder: Path, record: JudgeRecord) -> None:
    """Write the record into `folder`. It replaces an earlier one."""
    with open_for_replacement(folder / RECORD_FILE, remedy="name another folder") as stream:
        stream.write(record.model_dump_json(indent=1).encode() + b"\n")


def write_agreement(folder: Path, agreement: Mapping[str, Any]) -> None:
    """Write how well the judge agrees with people into its record. Raises SettingsError for a broken folder."""
    record = read_judge_record(folder)
    write_judge_record(folder, record.model_copy(update={"agreement": Agreement.model_validate(dict(agreement))}))


def open_judge(folder: Path) -> OnnxJudge:
    """Open an exported judge.

    Raises SettingsError when a file is missing or was changed, and MissingExtra when a package is not installed.
    """
    record = read_judge_record(folder)
    if not record.files:
        raise SettingsError(
            f"{folder} holds a trained judge that was not exported; "
            "run `querylift judge export` on it, and name the folder that this command writes"
        )
    for name in SERVED_FILES:
        path = folder / name
        if not path.is_file():
            raise SettingsError(f"{folder} lacks {name}; {_REMEDY}")
        if compute_file_digest(path) != record.files.get(name):
            raise SettingsError(f"{path} is not the file that was exported, or is cut off; {_REMEDY}")
    return OnnxJudge(folder, record)


class OnnxJudge:
    """A judge that onnxruntime runs on one thread. It is a `Grader`."""

    def __init__(self, folder: Path, record: JudgeRecord) -> None:
        self._record = record
        self._tokenizer = load_judge_tokenizer(folder / TOKENIZER_FILE)
        self._session = open_onnx_session(folder / MODEL_FILE, remedy=_REMEDY)
        self._weight, self._bias = read_classifier(
            folder / CLASSIFIER_FILE, record, width=self._session.get_outputs()[0].shape[2]
        )

    @property
    def name(self) -> str:
        """The name of the judge."""
        return self._record.name

    @property
    def teacher(self) -> str:
        """The name of the model whose annotations the judge learned from."""
        return self._record.teacher

    @property
    def scale(self) -> GradeScale:
        """The scale of its grades."""
        return self._record.scale

    def grade_pairs(
        self, pairs: Sequence[QueryDocumentPair], *, progress: Callable[[int], None] = lambda count: None
    ) -> list[PredictedGrade]:
        """Return the grade of each pair, in their order. A text that several pairs share is read once, if read apart."""
        vectors: dict[tuple[int, ...], Vector] = {}
        predictions = []
        for count, pair in enumerate(pairs, 1):
            predictions.append(self._grade_features(self._read_pair(pair, vectors)))
            progress(count)
        return predictions

    def _read_pair(self, pair: QueryDocumentPair, vectors: dict[tuple[int, ...], Vector]) -> Vector:
        """Return what the classifier reads of a pair: shape (features,). `vectors` keeps those of texts read before."""
        query = tokenize_text(self._tokenizer, pair.query, self._record.query_tokens)
        document = tokenize_text(self._tokenizer, pair.document, self._record.document_tokens)
        if self._record.reading == "joint":
            first_token: Vector = self._run_encoder([*query, *document[1:]])[0]
            return first_token
        for ids in (query, document):
            if ids not in vectors:
                vectors[ids] = normalize_mean(self._run_encoder(ids))
        return combine_vectors(vectors[query], vectors[document])

    def _run_encoder(self, ids: Sequence[int]) -> Vector:
        """Return the vector of each token: shape (tokens, width)."""
        import numpy as np

        tokens: Vector = self._session.run(None, {"input_ids": np.array([ids], dtype=np.int64)})[0][0]
        return tokens

    def _grade_features(self, features: Vector) -> PredictedGrade:
        import numpy as np

        logits = self._weight @ features + self._bias
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        expected_grade = float(probabilities @ np.arange(len(probabilities)))
        grade = sum(expected_grade >= threshold for threshold in self._record.thresholds)
        return PredictedGrade(grade, tuple(float(probability) for probability in probabilities))


def normalize_mean(tokens: Vector) -> Vector:
    """Return the mean of the tokens' vectors, scaled to length 1: shape (width,)."""
    import numpy as np

    mean = tokens.mean(axis=0)
    vector: Vector = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return vector


def combine_vectors(query: Vector, document: Vector) -> Vector:
    """Return product, absolute difference and cosine of two vectors of length 1: shape (2 * width + 1,).

    Product and difference are multiplied by the square root of the width. A difference is then about as large as the
    cosine, and a product is smaller.
    """
    import numpy as np

    scale = len(query) ** 0.5
    product = query * document
    combined: Vector = np.concatenate(
        [product * scale, abs(query - document) * scale, [product.sum()]], dtype=np.float32
    )
    return combined


def read_classifier(path: Path, record: JudgeRecord, *, width: int, remedy: str = _REMEDY) -> tuple[Vector, Vector]:
    """Return the weights, shape (grades, features), and the offsets, shape (grades,), of a judge's classifier.

    `width` is that of the encoder's vectors. Raises SettingsError when the file is damaged or does not fit to the record.
    """
    import numpy as np

    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            weight, bias = arrays["weight"], arrays["bias"]
    except Exception as error:  # a cut file raises errors of zipfile, numpy or the system
        raise SettingsError(f"{path} is damaged ({error}); {remedy}") from None
    grade_count, feature_count = len(record.meanings), width if record.reading == "joint" else 2 * width + 1
    if weight.shape != (grade_count, feature_count) or bias.shape != (grade_count,):
        raise SettingsError(
            f"{path} has weights of the shape {weight.shape}, and {RECORD_FILE} and the encoder need "
            f"{(grade_count, feature_count)}; {remedy}"
        )
    return weight, bias


def load_judge_tokenizer(path: Path, *, remedy: str = _REMEDY) -> Any:
    """Load a tokenizer that reads whole texts. It must put a first and a last token around each.

    Raises SettingsError, MissingExtra.
    """
    tokenizer = load_tokenizer(path, remedy=remedy)
    if len(tokenizer.encode("").ids) != 2:
        raise SettingsError(f"{path} does not put a first and a last token around each text; {remedy}")
    return tokenizer


def tokenize_text(tokenizer: Any, text: str, max_tokens: int) -> tuple[int, ...]:
    """Return the token ids of a text, with the first and the last token that the model expects, `max_tokens` at most.

    Training and serving both cut a text here.
    """
    ids = tuple(tokenizer.encode(text).ids)
    return ids if len(ids) <= max_tokens else (*ids[: max_tokens - 1], ids[-1])
