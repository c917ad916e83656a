"""Requests that a server must refuse, made from a seed, with the status that each is to be answered with.

Two families. `Call`s are well-formed gRPC with a wrong message; their answer is a gRPC status. `Frames` are wrong as
HTTP/2 or as gRPC framing already, and go over a bare socket; their answer is a gRPC status, an HTTP/2 error, or the end
of the connection.

Where Triton 2.51 answers with another status than the right one, the kind says so: `instead`.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

SERVICE = "/inference.GRPCInferenceService/"
MODEL, ENCODER, VERSION = "reviews", "reviews-encoder", "7"
MAX_TEXT_BYTES, MAX_BATCH_SIZE, LABEL_COUNT = 400, 8, 3  # of the tiny package
BIG = 10 * 2**20


@dataclass(frozen=True)
class Call:
    """One unary gRPC call."""

    kind: str
    path: str
    message: bytes
    expected: tuple[str, ...]
    """Names of the gRPC status codes that are right."""


@dataclass(frozen=True)
class Frames:
    """Bytes for one connection of their own."""

    kind: str
    data: bytes
    half_close: bool
    """Whether our side is closed after the last byte, so that the server sees half a request, and no more."""
    expected: tuple[str, ...]
    """What may come back, as `answer_to` names it."""


CALLS: dict[str, tuple[int, tuple[str, ...], Callable[[random.Random], tuple[str, Message | bytes]]]] = {}
"""By kind: how often it is drawn, the right statuses, and what makes one."""
FRAMES: dict[str, tuple[int, tuple[str, ...], Callable[[random.Random], tuple[bytes, bool]]]] = {}


def calls(seed: int, count: int) -> list[Call]:
    """`count` calls, each kind about as often as its weight says, and at least once."""
    draw = random.Random(seed)
    kinds = [*CALLS, *draw.choices(list(CALLS), [weight for weight, _, _ in CALLS.values()], k=count - len(CALLS))]
    draw.shuffle(kinds)
    made = []
    for kind in kinds:
        _, expected, make = CALLS[kind]
        path, message = make(draw)
        data = message if isinstance(message, bytes) else message.SerializeToString()
        made.append(Call(kind, SERVICE + path, data, expected))
    return made


def frames(seed: int, count: int) -> list[Frames]:
    """As `calls`, for bare connections."""
    draw = random.Random(seed)
    kinds = [*FRAMES, *draw.choices(list(FRAMES), [weight for weight, _, _ in FRAMES.values()], k=count - len(FRAMES))]
    draw.shuffle(kinds)
    return [Frames(kind, *FRAMES[kind][2](draw), FRAMES[kind][1]) for kind in kinds]


def call(*right: str, instead: str = "", weight: int = 10, path: str = "ModelInfer"):
    """Register a kind of calls, of which the server answers each with one of `right`, or as 2.51 does, `instead`."""
    expected = (*right, instead) if instead else right

    def register(make):
        CALLS[make.__name__] = (weight, expected, lambda draw: (path, make(draw)))
        return make

    return register


def frame(*right: str, instead: str = "", half_close: bool = False, weight: int = 10):
    """Register a kind of connections, as `call` does. `half_close`: our side is closed after the last byte."""
    expected = (*right, instead) if instead else right

    def register(make):
        FRAMES[make.__name__] = (weight, expected, lambda draw: (make(draw), half_close))
        return make

    return register


# ---- messages -------------------------------------------------------------------------------------------------------


def packed(texts: list[bytes]) -> bytes:
    """Texts as raw contents: each with its length before it."""
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def request(
    texts: list[bytes], *, shape: list[int] | None = None, raw: bytes | None = None, **changes: str
) -> service_pb2.ModelInferRequest:
    """A request about texts, right unless told otherwise."""
    message = service_pb2.ModelInferRequest(
        model_name=changes.get("model", MODEL), model_version=changes.get("version", "")
    )
    tensor = message.inputs.add(name=changes.get("input", "TEXT"), datatype=changes.get("datatype", "BYTES"))
    tensor.shape.extend([len(texts), 1] if shape is None else shape)
    message.raw_input_contents.append(packed(texts) if raw is None else raw)
    return message


def token_request(rows: list[list[int]], **shapes: list[int]) -> service_pb2.ModelInferRequest:
    """A request to the encoder, right unless told otherwise."""
    message = service_pb2.ModelInferRequest(model_name=ENCODER)
    for name, values in (("input_ids", rows), ("attention_mask", [[1] * len(row) for row in rows])):
        tensor = message.inputs.add(name=name, datatype="INT64")
        tensor.shape.extend(shapes.get(name, [len(rows), len(rows[0])]))
        message.raw_input_contents.append(b"".join(struct.pack(f"<{len(row)}q", *row) for row in values))
    return message


def some_text(draw: random.Random) -> bytes:
    return " ".join(
        draw.choices(["the", "film", "was", "good", "größer", "🎬", "x" * 30], k=draw.randint(0, 9))
    ).encode()


def some_texts(draw: random.Random) -> list[bytes]:
    return [some_text(draw) for _ in range(draw.randint(1, MAX_BATCH_SIZE))]


def some_name(draw: random.Random) -> str:
    return draw.choice(["", "TEXT ", "text", "../..", "a" * 5000, "\x00", "ünï", "%s%n", "LABEL"]) + str(draw.random())


@call("INVALID_ARGUMENT")
def wrong_rank(draw):
    texts = some_texts(draw)
    n = len(texts)
    return request(texts, shape=draw.choice([[], [n], [n, 1, 1], [1, 1, n, 1], [n] + [1] * 30]))


@call("INVALID_ARGUMENT")
def wrong_second_dimension(draw):
    columns = draw.choice([0, 2, 3, 1000])
    return request([b"x"] * columns, shape=[1, columns])


@call("INVALID_ARGUMENT")
def no_rows(draw):
    return request([], shape=[0, 1])


@call("INVALID_ARGUMENT")
def negative_dimension(draw):
    return request(some_texts(draw), shape=draw.choice([[-1, 1], [1, -1], [-5, 1], [-(2**31), 1]]))


@call("INVALID_ARGUMENT", instead="OK")  # it looks at the product alone, and at the lower half of that
def negative_dimensions_that_fit(draw):
    return request([some_text(draw)], shape=draw.choice([[-1, -1], [-(2**63), 1], [1 - 2**32, 1]]))


@call("INVALID_ARGUMENT")
def giant_dimension(draw):
    return request(some_texts(draw), shape=draw.choice([[2**31, 1], [2**62, 4], [2**63 - 1, 1], [2**32, 2**32]]))


@call("INVALID_ARGUMENT")
def batch_too_large(draw):
    return request([some_text(draw) for _ in range(draw.choice([MAX_BATCH_SIZE + 1, 64, 1000]))])


@call("INVALID_ARGUMENT")
def wrong_datatype(draw):
    width, name = draw.choice([(8, "INT64"), (4, "FP32"), (1, "BOOL"), (1, "UINT8"), (2, "FP16"), (2, "BF16")])
    return request([b""], raw=draw.randbytes(width), datatype=name)


@call("INVALID_ARGUMENT")
def unknown_datatype(draw):
    return request(some_texts(draw), datatype=draw.choice(["", "STRING", "bytes", "TYPE_STRING", "\x00", "B" * 1000]))


@call("INVALID_ARGUMENT")
def contents_cut_off(draw):
    texts = [some_text(draw) for _ in range(draw.randint(2, MAX_BATCH_SIZE))]
    data = packed(texts)
    return request(texts, raw=data[: draw.randrange(len(data))])


@call("INVALID_ARGUMENT")
def length_beyond_the_contents(draw):
    length = draw.choice([2, 100, 2**20, 2**31 - 1, 2**31, 2**32 - 1])
    return request([b"x"], raw=struct.pack("<I", length) + b"x")


@call("INVALID_ARGUMENT")
def contents_for_more_rows(draw):
    return request(some_texts(draw), raw=packed([b"x"] * (MAX_BATCH_SIZE + draw.randint(1, 9))))


@call("INVALID_ARGUMENT")
def bytes_after_the_contents(draw):
    texts = some_texts(draw)
    return request(texts, raw=packed(texts) + draw.randbytes(draw.randint(1, 9)))


@call("INVALID_ARGUMENT")
def no_contents(draw):
    message = request([b"x"])
    del message.raw_input_contents[:]
    return message


@call("INVALID_ARGUMENT", instead="OK")  # it leaves out what is too many
def more_contents_than_inputs(draw):
    message = request(some_texts(draw))
    message.raw_input_contents.extend([packed([b"x"])] * draw.randint(1, 5))
    return message


@call("INVALID_ARGUMENT")
def contents_given_twice(draw):
    message = request([b"x"])
    message.inputs[0].contents.bytes_contents.append(b"x")
    return message


@call("INVALID_ARGUMENT")
def contents_of_another_type(draw):
    message = request([b"x"])
    del message.raw_input_contents[:]
    contents = message.inputs[0].contents
    getattr(contents, draw.choice(["int_contents", "int64_contents", "uint_contents"])).append(5)
    return message


@call("INVALID_ARGUMENT")
def wrong_number_of_contents(draw):
    message = request([b"x"])
    del message.raw_input_contents[:]
    message.inputs[0].contents.bytes_contents.extend([b"x"] * draw.choice([2, 3, 100]))
    return message


@call("INVALID_ARGUMENT")
def wrong_input_name(draw):
    return request(some_texts(draw), input=some_name(draw))


@call("INVALID_ARGUMENT")
def no_input(draw):
    return service_pb2.ModelInferRequest(model_name=MODEL)


@call("INVALID_ARGUMENT")
def input_given_twice(draw):
    message = request([b"x"])
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(packed([b"y"]))
    return message


@call("INVALID_ARGUMENT")
def one_input_too_many(draw):
    message = request([b"x"])
    message.inputs.add(name=some_name(draw), datatype="INT64").shape.append(1)
    message.raw_input_contents.append(bytes(8))
    return message


@call("INVALID_ARGUMENT")
def unknown_output(draw):
    message = request(some_texts(draw))
    message.outputs.add(name=some_name(draw))
    return message


@call("NOT_FOUND")
def unknown_model(draw):
    return request(some_texts(draw), model=some_name(draw))


@call("NOT_FOUND")
def unknown_version(draw):
    return request(some_texts(draw), version=draw.choice(["1", "8", "77", str(2**62)]))


@call("INVALID_ARGUMENT")
def version_that_is_no_number(draw):
    return request(some_texts(draw), version=draw.choice(["latest", "../7", "seven", "\x00", str(2**70)]))


@call("INVALID_ARGUMENT", instead="OK")  # it reads a version as far as it is a number
def version_with_a_tail(draw):
    return request(some_texts(draw), version=draw.choice(["7.0", "7latest", "7/../8", " 7", "7\x00"]))


@call("INVALID_ARGUMENT", weight=20)
def invalid_utf8(draw):
    bad = draw.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf", b"\x80", b"\xe2\x82"])
    texts = some_texts(draw)
    texts[draw.randrange(len(texts))] = some_text(draw) + b" " + bad + b" end"
    return request(texts)


@call("INVALID_ARGUMENT", weight=20)
def text_too_long(draw):
    texts = some_texts(draw)
    texts[draw.randrange(len(texts))] = b"x" * draw.choice([MAX_TEXT_BYTES + 1, 1000, 100_000])
    return request(texts)


@call("INVALID_ARGUMENT", weight=2)
def text_of_ten_megabytes(draw):
    return request([draw.choice([b"x", b"\xff", b"\x00", "ü".encode()]) * BIG])


@call("NOT_FOUND")
def unknown_shared_memory(draw):
    message = request([b"x"])
    del message.raw_input_contents[:]
    parameters = message.inputs[0].parameters
    parameters["shared_memory_region"].string_param = some_name(draw)
    parameters["shared_memory_byte_size"].int64_param = draw.choice([0, 5, -1, 2**63 - 1])
    parameters["shared_memory_offset"].int64_param = draw.choice([0, -1, 2**63 - 1])
    return message


@call("INVALID_ARGUMENT")
def parameter_of_the_wrong_type(draw):
    message = request([b"x"])
    message.parameters[draw.choice(["priority", "timeout", "sequence_start"])].string_param = "soon"
    return message


@call("INVALID_ARGUMENT", instead="INTERNAL")  # only ONNX Runtime looks at the values; it answers so natively as well
def token_ids_out_of_range(draw):
    return token_request([[2, draw.choice([-1000, 10**6, 2**62, -(2**63)]), 3]])


@call("INVALID_ARGUMENT", instead="INTERNAL")  # the two lengths are free each for itself in the configuration
def mask_of_another_length(draw):
    rows = [[2, 4, 3]]
    message = token_request(rows)
    message.inputs[1].shape[1] = 2
    message.raw_input_contents[1] = bytes(16)
    return message


@call("INVALID_ARGUMENT")
def token_bytes_missing(draw):
    message = token_request([[2, 4, 3]] * 2)
    message.raw_input_contents[0] = message.raw_input_contents[0][: draw.randrange(48)]
    return message


@call("INVALID_ARGUMENT")
def half_of_the_encoders_inputs(draw):
    message = token_request([[2, 4, 3]])
    del message.inputs[1], message.raw_input_contents[1]
    return message


@call("NOT_FOUND")
def no_model_name(draw):
    return b""


@call("INTERNAL", weight=20)
def no_protobuf(draw):
    return b"\x0a\xff\xff\xff\xff\x0f" + draw.randbytes(draw.choice([0, 10, 1000, 100_000]))


@call("INTERNAL")
def protobuf_cut_off(draw):
    data = request(some_texts(draw)).SerializeToString()
    return data[: -draw.randint(1, 4)]


@call("INTERNAL")
def model_name_that_is_no_utf8(draw):
    return b"\x0a\x04\xff\xfe\xfd\xfc"


# A flipped bit may change the text alone, or cut the message.
@call("OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", weight=100)
def bits_flipped(draw):
    data = bytearray(request(some_texts(draw)).SerializeToString())
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


@call("UNIMPLEMENTED", path="NoSuchCall")
def unknown_call(draw):
    return draw.randbytes(draw.randint(0, 100))


@call("NOT_FOUND", path="ModelConfig")
def config_of_an_unknown_model(draw):
    return service_pb2.ModelConfigRequest(name=some_name(draw))


@call("NOT_FOUND", path="ModelMetadata")
def metadata_of_an_unknown_model(draw):
    return service_pb2.ModelMetadataRequest(name=some_name(draw))


@call("UNAVAILABLE", path="RepositoryModelUnload")
def administration(draw):
    return service_pb2.RepositoryModelUnloadRequest(model_name=MODEL)


@call("UNAVAILABLE", path="SystemSharedMemoryRegister")
def registering_shared_memory(draw):
    return service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/etc/passwd", byte_size=2**40)


# ---- frames ---------------------------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
ERRORS = ["NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"]
ERRORS += ["FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"]
STATUSES = ["OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"]
STATUSES += ["PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"]
STATUSES += ["UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"]


def h2(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """One HTTP/2 frame."""
    return (
        struct.pack(">I", len(payload) if length is None else length)[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def hpack(fields: dict[str, str]) -> bytes:
    """Header fields as literals, without any index."""

    def text(value: str) -> bytes:
        data, rest = value.encode(), len(value.encode()) - 127
        if rest < 0:
            return bytes([len(data)]) + data
        length = bytearray([127])
        while rest > 127:
            length.append(rest % 128 + 128)
            rest //= 128
        return bytes([*length, rest]) + data

    return b"".join(b"\x00" + text(name) + text(value) for name, value in fields.items())


FIELDS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": f"{SERVICE}ModelInfer",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}
OPENING = PREFACE + h2(SETTINGS, 0, 0)


def opened(flags: int = END_HEADERS, **fields: str) -> bytes:
    """A connection with a request's headers sent."""
    changed = {name.replace("_", "-").replace("--", ":"): value for name, value in fields.items()}
    return OPENING + h2(HEADERS, flags, 1, hpack({**FIELDS, **changed}))


def message(data: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A message with gRPC's five bytes before it."""
    return bytes([compressed]) + struct.pack(">I", len(data) if length is None else length) + data


def answer_to(frames: Frames, port: int, *, patience: float = 10.0) -> str:
    """What comes back: `status X`, `HTTP n`, `GOAWAY X`, `RST_STREAM X`, `end` of the connection, or `silence`."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        received = b""
        try:
            connection.sendall(frames.data)
            if frames.half_close:
                connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(65536):
                received += block
                if answer := _decisive(received):
                    return answer
        except TimeoutError:
            return "silence"
        except ConnectionError:
            return "end"
        return "end"


def _decisive(data: bytes) -> str:
    """The first frame that ends the request or the connection, if it is there."""
    if data.startswith(b"HTTP/1"):
        return f"HTTP {data.split()[1].decode()}" if b"\r\n" in data else ""
    while len(data) >= 9:
        length, kind, flags = int.from_bytes(data[:3], "big"), data[3], data[4]
        payload, rest = data[9 : 9 + length], data[9 + length :]
        if len(payload) < length:
            return ""
        if kind == GOAWAY:
            return f"GOAWAY {ERRORS[int.from_bytes(payload[4:8], 'big')]}"
        if kind == RST_STREAM:
            return f"RST_STREAM {ERRORS[int.from_bytes(payload, 'big')]}"
        if kind == HEADERS and flags & END_STREAM:
            return _status(payload)
        data = rest
    return ""


def _status(payload: bytes) -> str:
    """From a block of headers, which gRPC's C core does not compress."""
    value = payload.partition(b"grpc-status")[2]
    if not value:
        return "HTTP"
    return f"status {STATUSES[int(value[1 : 1 + value[0]])]}"


@frame("end")
def http1(draw):
    return b"POST /v2/models/reviews/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@frame("end")
def noise(draw):
    return b"\x81" + draw.randbytes(draw.choice([30, 1000, 100_000]))


@frame("end")
def tls_hello(draw):
    return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(508)


@frame("end", half_close=True)
def preface_cut_off(draw):
    return PREFACE[: draw.randrange(len(PREFACE))]


@frame("end", half_close=True)
def frame_header_cut_off(draw):
    return OPENING + h2(HEADERS, END_HEADERS, 1, bytes(20))[: draw.randint(1, 8)]


@frame("end", "status UNAVAILABLE", half_close=True)
def headers_cut_off(draw):
    data = opened()
    return data[: -draw.randint(1, 60)]


@frame("end", "status UNAVAILABLE", half_close=True)
def headers_and_no_more(draw):
    return opened()


@frame("end", "status UNAVAILABLE", half_close=True)
def data_cut_off(draw):
    data = h2(DATA, END_STREAM, 1, message(request(some_texts(draw)).SerializeToString()))
    return opened() + data[: draw.randrange(9, len(data) - 1)]


@frame("end")
def frame_too_large(draw):
    return OPENING + h2(DATA, 0, 1, bytes(100), length=draw.choice([2**24 - 1, 2**23]))


@frame("end")
def settings_of_a_wrong_length(draw):
    return PREFACE + h2(SETTINGS, 0, 0, bytes(draw.choice([1, 5, 7])))


@frame("end")
def settings_out_of_range(draw):
    return PREFACE + h2(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31 + draw.randrange(2**30)))


@frame("end")
def settings_of_a_stream(draw):
    return PREFACE + h2(SETTINGS, 0, draw.choice([1, 3]))


@frame("end")
def ping_of_a_wrong_length(draw):
    return OPENING + h2(PING, 0, 0, bytes(draw.choice([0, 7, 9])))


@frame("end")
def window_of_zero(draw):
    return OPENING + h2(WINDOW_UPDATE, 0, 0, bytes(4))


@frame("end", half_close=True)  # ignored, though an error of the connection
def window_beyond_its_limit(draw):
    return OPENING + h2(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)) * 2


@frame("end", half_close=True)  # ignored, though an error
def headers_of_stream_zero(draw):
    return OPENING + h2(HEADERS, END_HEADERS, 0, hpack(FIELDS))


@frame("end", half_close=True)  # ignored, though an error
def headers_of_an_even_stream(draw):
    return OPENING + h2(HEADERS, END_HEADERS, draw.choice([2, 4, 100]), hpack(FIELDS))


@frame("end")
def continuation_of_nothing(draw):
    return OPENING + h2(CONTINUATION, END_HEADERS, 1, hpack(FIELDS))


@frame("end", "status UNAVAILABLE")
def headers_interrupted(draw):
    return OPENING + h2(HEADERS, 0, 1, hpack(FIELDS)) + h2(PING, 0, 0, bytes(8))


@frame("end", "status UNAVAILABLE")
def headers_with_a_wrong_index(draw):
    return OPENING + h2(HEADERS, END_HEADERS | END_STREAM, 1, draw.choice([b"\x80", b"\xff\xff\xff\xff\x0f", b"\xfe"]))


@frame("end", "status UNAVAILABLE")
def padding_beyond_the_frame(draw):
    return OPENING + h2(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + hpack(FIELDS)[:50])


@frame("status RESOURCE_EXHAUSTED", instead="status INTERNAL")  # which limits them at 16 KiB, too
def headers_too_large(draw):
    block = hpack({**FIELDS, "x-padding": "y" * draw.choice([20_000, 60_000])})
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    data = OPENING + h2(HEADERS, END_STREAM, 1, parts[0])
    for index, part in enumerate(parts[1:], 2):
        data += h2(CONTINUATION, END_HEADERS if index == len(parts) else 0, 1, part)
    return data


@frame("status UNIMPLEMENTED")
def unknown_path(draw):
    return opened(END_HEADERS | END_STREAM, __path=draw.choice(["/", "", "/x/y", "*", SERVICE, "/" + "a" * 1000]))


@frame("RST_STREAM INTERNAL_ERROR", "status UNKNOWN")
def wrong_method(draw):
    return opened(END_HEADERS | END_STREAM, __method=draw.choice(["GET", "DELETE", "post", ""]))


@frame("RST_STREAM INTERNAL_ERROR", "status INTERNAL")
def wrong_content_type(draw):
    return opened(END_HEADERS | END_STREAM, content_type=draw.choice(["text/html", "application/json", ""]))


@frame("status INTERNAL")
def no_message(draw):
    return opened(END_HEADERS | END_STREAM)


@frame("status INTERNAL")
def message_cut_off(draw):
    return opened() + h2(DATA, END_STREAM, 1, message(b"x" * draw.randrange(90), length=100))


@frame("status INTERNAL")
def message_prefix_cut_off(draw):
    return opened() + h2(DATA, END_STREAM, 1, bytes(draw.randint(1, 4)))


@frame("status RESOURCE_EXHAUSTED", "status INTERNAL")
def message_of_four_gigabytes(draw):
    return opened() + h2(DATA, END_STREAM, 1, message(b"x" * 50, length=2**32 - 1))


@frame("status INTERNAL", instead="status NOT_FOUND")  # reads the lowest bit, and an empty request
def unknown_flags(draw):
    return opened() + h2(DATA, END_STREAM, 1, message(b"", compressed=draw.choice([2, 7, 255])))


@frame("status INTERNAL")
def compressed_with_nothing(draw):
    return opened() + h2(DATA, END_STREAM, 1, message(b"x" * 9, compressed=1))


@frame("status UNIMPLEMENTED", instead="RST_STREAM INTERNAL_ERROR")
def unknown_compression(draw):
    return opened(grpc_encoding="zip") + h2(DATA, END_STREAM, 1, message(b"x" * 9, compressed=1))


@frame("status INTERNAL")
def broken_gzip(draw):
    return opened(grpc_encoding="gzip") + h2(DATA, END_STREAM, 1, message(draw.randbytes(50), compressed=1))


@frame("RST_STREAM INTERNAL_ERROR", instead="status OK")  # one that is too long or empty is taken for none
def wrong_deadline(draw):
    good = h2(DATA, END_STREAM, 1, message(request([b"good"]).SerializeToString()))
    return opened(grpc_timeout=draw.choice(["soon", "-1S", "99999999999S", "1X", ""])) + good


@frame("status INTERNAL", instead="status OK")  # the first one is answered
def two_messages(draw):
    one = message(request([b"good"]).SerializeToString())
    return opened() + h2(DATA, END_STREAM, 1, one + one)


@frame("end", "status INTERNAL", half_close=True)
def reset_at_once(draw):
    return opened() + h2(RST_STREAM, 0, 1, bytes([0, 0, 0, 8]))


@frame("end", half_close=True)  # ignored, as HTTP/2 says
def unknown_frame_type(draw):
    return OPENING + h2(draw.choice([20, 99, 255]), 255, 0, draw.randbytes(50))


@frame("end", half_close=True)  # ignored, though an error
def data_before_headers(draw):
    return OPENING + h2(DATA, END_STREAM, 1, b"x")
