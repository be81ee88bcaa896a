"""What `beige.v1.Embeddings` promises: a check passes by returning."""

from typing import Any

import grpc
import numpy as np

from grpc_facts import (
    CLOSE,
    NO_DIGEST,
    TEXTS,
    TIMEOUT,
    bad_field,
    close,
    emb,
    emb_grpc,
    embed,
    expect,
    prov,
    refused,
    same,
    vectors,
)
from grpc_stubs import PACKAGE, Target, generated

mod, mod_grpc = generated("models")


def check_embed_f32(target: Target) -> None:
    """Vectors of the model's size, of length 1 where wanted, and an answer that says what made it."""
    answer = embed(target, normalize=True)
    found = vectors(answer)
    same(found.shape, (len(TEXTS), answer.provenance.dimensions), "shape")
    close(
        np.linalg.norm(found, axis=1), np.ones(len(TEXTS), np.float32), 1e-5, "lengths"
    )
    same(answer.provenance.model, target.model, "model")
    expect(
        len(bytes.fromhex(answer.provenance.digest)) == 32, "the digest is no SHA-256"
    )
    expect(
        answer.provenance.epoch >= 1 and answer.provenance.index_space,
        "epoch and space",
    )
    same(len(answer.input_tokens), len(TEXTS), "token counts")
    same(answer.usage.tokens, sum(answer.input_tokens), "tokens")


def check_embed_metadata(target: Target) -> None:
    """Provenance and usage come as response metadata too."""
    request = emb.EmbedRequest(model=target.model, inputs=TEXTS)
    stub = emb_grpc.EmbeddingsStub(target.channel)
    answer, call = stub.Embed.with_call(request, timeout=TIMEOUT)
    said = dict(call.initial_metadata()) | dict(call.trailing_metadata())
    provenance = answer.provenance
    for field in ["model", "digest", "epoch", "index_space", "dimensions"]:
        key = "beige-" + field.replace("_", "-")
        same(said.get(key), str(getattr(provenance, field)), key)
    same(said.get("beige-tokens"), str(answer.usage.tokens), "beige-tokens")


def check_embed_f16(target: Target) -> None:
    """Half precision is f32 rounded."""
    wanted = vectors(embed(target)).astype("<f2")
    answer = embed(target, encoding=emb.ENCODING_F16)
    found = np.frombuffer(answer.dense.data, dtype="<f2").reshape(wanted.shape)
    close(found.astype(np.float32), wanted.astype(np.float32), 2e-3, "halves")


def check_embed_int8(target: Target) -> None:
    """Bytes times the scale of their vector are f32 to within half a step."""
    wanted = vectors(embed(target))
    dense = embed(target, encoding=emb.ENCODING_INT8).dense
    same(len(dense.scales), len(TEXTS), "scales")
    scales = np.array(dense.scales, np.float32)[:, None]
    found = np.frombuffer(dense.data, dtype=np.int8).reshape(wanted.shape)
    expect(np.abs(found).max() > 100, "the range of a byte is not used")
    off = float(np.abs(found * scales - wanted).max() / scales.max())
    expect(off <= 0.51, f"off by {off} steps")


def check_embed_binary(target: Target) -> None:
    """Bits are signs, as `numpy.packbits` packs them."""
    wanted = vectors(embed(target))
    dense = embed(target, encoding=emb.ENCODING_BINARY).dense
    same(dense.dimensions, wanted.shape[1], "dimensions")
    found = np.frombuffer(dense.data, dtype=np.uint8).reshape(len(TEXTS), -1)
    bits = np.unpackbits(found, axis=1)[:, : wanted.shape[1]]
    # A number as good as zero may fall on either side in another batch.
    sure = np.abs(wanted) > CLOSE
    expect((bits == (wanted > 0))[sure].all(), "signs differ")


def check_embed_fewer_dimensions(target: Target) -> None:
    """Vectors are cut, then have length 1 again."""
    whole = vectors(embed(target, normalize=True))
    answer = embed(target, dimensions=7, normalize=True)
    same((answer.dense.dimensions, answer.provenance.dimensions), (7, 7), "dimensions")
    cut = whole[:, :7]
    wanted = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    close(vectors(answer), wanted, 1e-4, "cut vectors")


def check_embed_keeps_order_whatever_the_batch(target: Target) -> None:
    """A text has one vector: alone, first, last, or among hundreds."""
    wanted = vectors(embed(target))
    close(vectors(embed(target, TEXTS[::-1]))[::-1], wanted, CLOSE, "reversed")
    many = [f"{text} {number}" for number in range(50) for text in TEXTS]
    found = vectors(embed(target, many + TEXTS))[len(many) :]
    close(found, wanted, CLOSE, "vectors among many")
    alone = np.concatenate([vectors(embed(target, [text])) for text in TEXTS])
    close(alone, wanted, CLOSE, "vectors alone")


def check_embed_instruction(target: Target) -> None:
    """An instruction stands in front of the text as it is."""
    found = vectors(embed(target, instruction="Think of this: "))
    wanted = vectors(embed(target, ["Think of this: " + text for text in TEXTS]))
    close(found, wanted, CLOSE, "vectors with an instruction")


def check_embed_truncation(target: Target) -> None:
    """Too long is refused by default, and cut at either end when asked."""
    long = ["short", "word " * 9000 + "end"]
    same(bad_field(embed, target, long), "inputs[1]", "field")
    end = embed(target, long, truncation=prov.TRUNCATION_END)
    start = embed(target, long, truncation=prov.TRUNCATION_START)
    window = mod_grpc.ModelsStub(target.channel).Get(
        mod.GetModelRequest(name=target.model)
    )
    same(end.input_tokens[1], window.checkpoint.max_tokens, "tokens")
    same(list(start.input_tokens), list(end.input_tokens), "tokens")
    expect(
        np.abs(vectors(start)[1] - vectors(end)[1]).max() > CLOSE, "both ends are alike"
    )


def check_embed_requirements(target: Target) -> None:
    """The checkpoint may be named in three ways, and another one is refused."""
    provenance = embed(target).provenance
    embed(target, require=prov.Require(digest=provenance.digest))
    embed(target, require=prov.Require(index_space=provenance.index_space))
    embed(Target(target.channel, f"{target.model}@{provenance.digest}", None))
    other = prov.Require(digest=NO_DIGEST)
    refused(grpc.StatusCode.FAILED_PRECONDITION, embed, target, require=other)


def check_bad_requests_name_their_field(target: Target) -> None:
    """INVALID_ARGUMENT with a `google.rpc.BadRequest`."""
    cases: list[tuple[str, list[str], dict[str, Any]]] = [
        ("inputs", [], {}),
        ("inputs[1]", ["a", ""], {}),
        ("inputs[2]", ["a", "b", "\u0007\u0000 \n"], {}),
        ("encoding", ["a"], {"encoding": 99}),
        ("input_type", ["a"], {"input_type": 99}),
        ("truncation", ["a"], {"truncation": 99}),
        ("priority", ["a"], {"priority": 99}),
        ("outputs[0]", ["a"], {"outputs": [99]}),
        ("dimensions", ["a"], {"dimensions": 0}),
        ("dimensions", ["a"], {"dimensions": 1_000_000}),
    ]
    for field, inputs, fields in cases:
        found = bad_field(embed, target, inputs, **fields)
        same(found, field, f"field of {inputs} {fields}")
    nameless = Target(target.channel, "", None)
    same(bad_field(embed, nameless), "model", "field")


def check_bytes_that_are_no_utf_8_are_refused(target: Target) -> None:
    """INVALID_ARGUMENT, and the connection lives on."""
    method = f"/{PACKAGE}.Embeddings/Embed"
    raw = target.channel.unary_unary(method, request_serializer=bytes)
    name = target.model.encode()
    request = b"\x0a" + bytes([len(name)]) + name + b"\x12\x02\xff\xfe"
    try:
        raw(request, timeout=TIMEOUT)
    except grpc.RpcError as error:
        same(error.code(), grpc.StatusCode.INVALID_ARGUMENT, "code")
        expect("inputs" in error.details(), f"no field in {error.details()!r}")
    else:
        raise AssertionError("no error")
    embed(target)


def check_embed_stream(target: Target) -> None:
    """One answer per request, in order, by one checkpoint."""
    wanted = vectors(embed(target))
    parts = [TEXTS[:1], TEXTS[1:4], TEXTS[4:]]
    requests = (emb.EmbedRequest(model=target.model, inputs=part) for part in parts)
    stream = emb_grpc.EmbeddingsStub(target.channel).EmbedStream(
        requests, timeout=TIMEOUT
    )
    answers = list(stream)
    same([len(answer.input_tokens) for answer in answers], [1, 3, 2], "sizes")
    close(
        np.concatenate([vectors(a) for a in answers]), wanted, CLOSE, "streamed vectors"
    )
    same(len({answer.provenance.digest for answer in answers}), 1, "checkpoints")


def check_a_stream_keeps_to_its_checkpoint(target: Target) -> None:
    """A later request that requires another one ends the stream."""
    first = emb.EmbedRequest(model=target.model, inputs=["a"])
    second = emb.EmbedRequest(
        model=target.model, inputs=["b"], require=prov.Require(digest=NO_DIGEST)
    )
    stub = emb_grpc.EmbeddingsStub(target.channel)
    stream = stub.EmbedStream(iter([first, second]), timeout=TIMEOUT)
    expect(next(stream).dense.data, "no first answer")
    refused(grpc.StatusCode.FAILED_PRECONDITION, next, stream)


def check_many_calls_at_once(target: Target) -> None:
    """A hundred calls on one connection, each with its own answer."""
    wanted = vectors(embed(target))
    stub = emb_grpc.EmbeddingsStub(target.channel)
    texts = [TEXTS[number % len(TEXTS)] for number in range(100)]
    requests = [emb.EmbedRequest(model=target.model, inputs=[text]) for text in texts]
    calls = [stub.Embed.future(request, timeout=TIMEOUT) for request in requests]
    for number, call in enumerate(calls):
        row = number % len(TEXTS)
        close(vectors(call.result()), wanted[row : row + 1], CLOSE, "a vector")


def check_a_deadline_is_kept(target: Target) -> None:
    """DEADLINE_EXCEEDED for a call that cannot be done in time."""
    request = emb.EmbedRequest(model=target.model, inputs=TEXTS * 20)
    stub = emb_grpc.EmbeddingsStub(target.channel)
    try:
        stub.Embed(request, timeout=0.0005)
    except grpc.RpcError as error:
        same(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED, "code")
    else:
        raise AssertionError("no error")
