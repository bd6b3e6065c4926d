from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("raw_input_contents",)
    RAW_INPUT_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    raw_input_contents: bytes
    def __init__(self, raw_input_contents: _Optional[bytes] = ...) -> None: ...
