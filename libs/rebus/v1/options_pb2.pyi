from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
ACCESS_FIELD_NUMBER: _ClassVar[int]
access: _descriptor.FieldDescriptor

class Access(_message.Message):
    __slots__ = ("role",)
    class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ROLE_UNSPECIFIED: _ClassVar[Access.Role]
        VIEWER: _ClassVar[Access.Role]
        EDITOR: _ClassVar[Access.Role]
        OPERATOR: _ClassVar[Access.Role]
    ROLE_UNSPECIFIED: Access.Role
    VIEWER: Access.Role
    EDITOR: Access.Role
    OPERATOR: Access.Role
    ROLE_FIELD_NUMBER: _ClassVar[int]
    role: Access.Role
    def __init__(self, role: _Optional[_Union[Access.Role, str]] = ...) -> None: ...
