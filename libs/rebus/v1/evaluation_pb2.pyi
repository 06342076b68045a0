from buf.validate import validate_pb2 as _validate_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from rebus.v1 import common_pb2 as _common_pb2
from rebus.v1 import contamination_pb2 as _contamination_pb2
from rebus.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubsetScore(_message.Message):
    __slots__ = ("value", "low", "high", "num_items")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    num_items: int
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., num_items: _Optional[int] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("benchmark", "group", "metric", "value", "low", "high", "num_items", "chance", "majority", "text_only", "clean")
    BENCHMARK_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    CHANCE_FIELD_NUMBER: _ClassVar[int]
    MAJORITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_ONLY_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    benchmark: str
    group: str
    metric: str
    value: float
    low: float
    high: float
    num_items: int
    chance: float
    majority: float
    text_only: float
    clean: SubsetScore
    def __init__(self, benchmark: _Optional[str] = ..., group: _Optional[str] = ..., metric: _Optional[str] = ..., value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., num_items: _Optional[int] = ..., chance: _Optional[float] = ..., majority: _Optional[float] = ..., text_only: _Optional[float] = ..., clean: _Optional[_Union[SubsetScore, _Mapping]] = ...) -> None: ...

class BenchmarkSpec(_message.Message):
    __slots__ = ("benchmark", "dataset_version", "split", "max_items")
    BENCHMARK_FIELD_NUMBER: _ClassVar[int]
    DATASET_VERSION_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    benchmark: str
    dataset_version: str
    split: str
    max_items: int
    def __init__(self, benchmark: _Optional[str] = ..., dataset_version: _Optional[str] = ..., split: _Optional[str] = ..., max_items: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("name", "model_version", "benchmarks", "seed", "model_digest", "scores", "digest", "code_revision", "benchmark_versions", "job", "contamination_policy", "contamination")
    class BenchmarkVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BENCHMARKS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODE_REVISION_FIELD_NUMBER: _ClassVar[int]
    BENCHMARK_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    CONTAMINATION_POLICY_FIELD_NUMBER: _ClassVar[int]
    CONTAMINATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_version: str
    benchmarks: _containers.RepeatedCompositeFieldContainer[BenchmarkSpec]
    seed: int
    model_digest: str
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    digest: str
    code_revision: str
    benchmark_versions: _containers.ScalarMap[str, str]
    job: _common_pb2.JobStatus
    contamination_policy: _contamination_pb2.ContaminationPolicy
    contamination: _containers.RepeatedCompositeFieldContainer[_contamination_pb2.Contamination]
    def __init__(self, name: _Optional[str] = ..., model_version: _Optional[str] = ..., benchmarks: _Optional[_Iterable[_Union[BenchmarkSpec, _Mapping]]] = ..., seed: _Optional[int] = ..., model_digest: _Optional[str] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., digest: _Optional[str] = ..., code_revision: _Optional[str] = ..., benchmark_versions: _Optional[_Mapping[str, str]] = ..., job: _Optional[_Union[_common_pb2.JobStatus, _Mapping]] = ..., contamination_policy: _Optional[_Union[_contamination_pb2.ContaminationPolicy, _Mapping]] = ..., contamination: _Optional[_Iterable[_Union[_contamination_pb2.Contamination, _Mapping]]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("benchmark", "group", "sample_id", "question", "prediction", "references", "score", "text_only_prediction")
    BENCHMARK_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TEXT_ONLY_PREDICTION_FIELD_NUMBER: _ClassVar[int]
    benchmark: str
    group: str
    sample_id: str
    question: str
    prediction: str
    references: _containers.RepeatedScalarFieldContainer[str]
    score: float
    text_only_prediction: str
    def __init__(self, benchmark: _Optional[str] = ..., group: _Optional[str] = ..., sample_id: _Optional[str] = ..., question: _Optional[str] = ..., prediction: _Optional[str] = ..., references: _Optional[_Iterable[str]] = ..., score: _Optional[float] = ..., text_only_prediction: _Optional[str] = ...) -> None: ...

class CreateEvaluationRequest(_message.Message):
    __slots__ = ("evaluation", "request_id")
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    request_id: str
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetEvaluationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListEvaluationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEvaluationsResponse(_message.Message):
    __slots__ = ("evaluations", "next_page_token")
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    next_page_token: str
    def __init__(self, evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListPredictionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListPredictionsResponse(_message.Message):
    __slots__ = ("predictions", "next_page_token")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    next_page_token: str
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchEvaluationRequest(_message.Message):
    __slots__ = ("name", "after_event")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_EVENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    after_event: int
    def __init__(self, name: _Optional[str] = ..., after_event: _Optional[int] = ...) -> None: ...

class CancelEvaluationRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...
