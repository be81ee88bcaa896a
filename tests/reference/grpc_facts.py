"""What the checks of the wire share: the generated modules, calls, and facts that must hold.

Imported once the modules generated from the protos can be.
"""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from grpc_stubs import Target, generated

emb, emb_grpc = generated("embeddings")
prov, _ = generated("provenance")

Floats = NDArray[np.float32]

TEXTS = [
    "The ferry leaves at ten past seven.",
    "A vector means something only inside its space.",
    "茶要趁热喝,话可以慢慢说。",
    "fn main() { println!(\"{}\", 6 * 7); }",
    "🚀",
    "Bread dough should spring back slowly when pressed, and so should a good idea.",
]  # fmt: skip
TIMEOUT = 60.0
# Numbers of one text in batches of different make-up; see tests/golden/README.md.
CLOSE = 1e-5
NO_DIGEST = "0" * 64


def expect(fact: object, what: str) -> None:
    """Fails the check where `fact` does not hold; unlike `assert`, under every flag of Python's."""
    if not fact:
        raise AssertionError(what)


def same(found: object, wanted: object, what: str) -> None:
    """Fails the check where two values differ."""
    expect(found == wanted, f"{what}: found {found!r}, wanted {wanted!r}")


def close(found: Floats, wanted: Floats, within: float, what: str) -> None:
    """Fails the check where numbers are too far apart."""
    same(found.shape, wanted.shape, f"shape of {what}")
    apart = float(np.abs(found - wanted).max())
    expect(apart <= within, f"{what} are {apart} apart, more than {within}")


def embed(target: Target, inputs: list[str] = TEXTS, **fields: Any) -> Any:
    """One call of `Embed`."""
    request = emb.EmbedRequest(model=target.model, inputs=inputs, **fields)
    return emb_grpc.EmbeddingsStub(target.channel).Embed(request, timeout=TIMEOUT)


def vectors(answer: Any) -> Floats:
    """The f32 vectors of an answer, `[inputs, dimensions]`."""
    same(answer.dense.encoding, emb.ENCODING_F32, "encoding")
    numbers = np.frombuffer(answer.dense.data, dtype="<f4")
    return numbers.reshape(-1, answer.dense.dimensions).astype(np.float32)


def refused(
    code: grpc.StatusCode, call: Callable[..., Any], *args: Any, **fields: Any
) -> Any:
    """The `google.rpc.Status` of a call that must be refused with this code."""
    try:
        call(*args, **fields)
    except grpc.RpcError as error:
        same(error.code(), code, f"code ({error.details()})")
        status = rpc_status.from_call(error)
        expect(status is not None, "no grpc-status-details-bin")
        same(status.message, error.details(), "message")
        return status
    raise AssertionError(f"no error, wanted {code.name}")


def bad_field(call: Callable[..., Any], *args: Any, **fields: Any) -> str:
    """The field that an INVALID_ARGUMENT blames."""
    status = refused(grpc.StatusCode.INVALID_ARGUMENT, call, *args, **fields)
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            violation = bad.field_violations[0]
            expect(violation.description, "no description")
            return str(violation.field)
    raise AssertionError("no google.rpc.BadRequest")
