from buf.validate import validate_pb2 as _validate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ContaminationMatch(_message.Message):
    __slots__ = ("by", "min_overlap", "ngram", "unit", "max_distance", "min_cosine", "embedding_column")
    class By(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BY_UNSPECIFIED: _ClassVar[ContaminationMatch.By]
        TEXT: _ClassVar[ContaminationMatch.By]
        IMAGE: _ClassVar[ContaminationMatch.By]
        EMBEDDING: _ClassVar[ContaminationMatch.By]
    BY_UNSPECIFIED: ContaminationMatch.By
    TEXT: ContaminationMatch.By
    IMAGE: ContaminationMatch.By
    EMBEDDING: ContaminationMatch.By
    class Unit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNIT_UNSPECIFIED: _ClassVar[ContaminationMatch.Unit]
        WORDS: _ClassVar[ContaminationMatch.Unit]
        CHARACTERS: _ClassVar[ContaminationMatch.Unit]
    UNIT_UNSPECIFIED: ContaminationMatch.Unit
    WORDS: ContaminationMatch.Unit
    CHARACTERS: ContaminationMatch.Unit
    BY_FIELD_NUMBER: _ClassVar[int]
    MIN_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    NGRAM_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    MAX_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    MIN_COSINE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_COLUMN_FIELD_NUMBER: _ClassVar[int]
    by: _containers.RepeatedScalarFieldContainer[ContaminationMatch.By]
    min_overlap: float
    ngram: int
    unit: ContaminationMatch.Unit
    max_distance: int
    min_cosine: float
    embedding_column: str
    def __init__(self, by: _Optional[_Iterable[_Union[ContaminationMatch.By, str]]] = ..., min_overlap: _Optional[float] = ..., ngram: _Optional[int] = ..., unit: _Optional[_Union[ContaminationMatch.Unit, str]] = ..., max_distance: _Optional[int] = ..., min_cosine: _Optional[float] = ..., embedding_column: _Optional[str] = ...) -> None: ...

class ContaminationPolicy(_message.Message):
    __slots__ = ("skip", "max_share", "match", "max_samples")
    SKIP_FIELD_NUMBER: _ClassVar[int]
    MAX_SHARE_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    skip: bool
    max_share: float
    match: ContaminationMatch
    max_samples: int
    def __init__(self, skip: _Optional[bool] = ..., max_share: _Optional[float] = ..., match: _Optional[_Union[ContaminationMatch, _Mapping]] = ..., max_samples: _Optional[int] = ...) -> None: ...

class SeenItem(_message.Message):
    __slots__ = ("item", "dataset_version", "sample", "reason")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    DATASET_VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    item: str
    dataset_version: str
    sample: str
    reason: str
    def __init__(self, item: _Optional[str] = ..., dataset_version: _Optional[str] = ..., sample: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class TrainingRows(_message.Message):
    __slots__ = ("dataset_version", "dataset_digest", "split", "sources", "num_samples", "num_seen", "unknown")
    DATASET_VERSION_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_SEEN_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    dataset_version: str
    dataset_digest: str
    split: str
    sources: _containers.RepeatedScalarFieldContainer[str]
    num_samples: int
    num_seen: int
    unknown: str
    def __init__(self, dataset_version: _Optional[str] = ..., dataset_digest: _Optional[str] = ..., split: _Optional[str] = ..., sources: _Optional[_Iterable[str]] = ..., num_samples: _Optional[int] = ..., num_seen: _Optional[int] = ..., unknown: _Optional[str] = ...) -> None: ...

class Contamination(_message.Message):
    __slots__ = ("benchmark_version", "benchmark_digest", "split", "match", "max_share", "num_items", "num_seen", "share", "first_seen", "training", "unknown")
    BENCHMARK_VERSION_FIELD_NUMBER: _ClassVar[int]
    BENCHMARK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_SHARE_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    NUM_SEEN_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    benchmark_version: str
    benchmark_digest: str
    split: str
    match: ContaminationMatch
    max_share: float
    num_items: int
    num_seen: int
    share: float
    first_seen: _containers.RepeatedCompositeFieldContainer[SeenItem]
    training: _containers.RepeatedCompositeFieldContainer[TrainingRows]
    unknown: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, benchmark_version: _Optional[str] = ..., benchmark_digest: _Optional[str] = ..., split: _Optional[str] = ..., match: _Optional[_Union[ContaminationMatch, _Mapping]] = ..., max_share: _Optional[float] = ..., num_items: _Optional[int] = ..., num_seen: _Optional[int] = ..., share: _Optional[float] = ..., first_seen: _Optional[_Iterable[_Union[SeenItem, _Mapping]]] = ..., training: _Optional[_Iterable[_Union[TrainingRows, _Mapping]]] = ..., unknown: _Optional[_Iterable[str]] = ...) -> None: ...
