"""What the other services promise: models, workers, scores, tokens, health, reflection."""

from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from grpc_facts import (
    CLOSE,
    TEXTS,
    TIMEOUT,
    bad_field,
    close,
    emb,
    embed,
    expect,
    refused,
    same,
    vectors,
)
from grpc_stubs import PACKAGE, Target, generated

che, _ = generated("checkpoints")
clu, clu_grpc = generated("cluster")
mod, mod_grpc = generated("models")
rer, rer_grpc = generated("reranking")
tok, tok_grpc = generated("tokens")


def check_models_are_listed_and_found(target: Target) -> None:
    """`List` has the model; `Get` gives the same."""
    stub = mod_grpc.ModelsStub(target.channel)
    models = stub.List(mod.ListModelsRequest(), timeout=TIMEOUT).models
    names = [model.name for model in models]
    same(names, sorted(names), "order of models")
    expect(target.model in names, f"{target.model} is not among {names}")
    model = stub.Get(mod.GetModelRequest(name=target.model), timeout=TIMEOUT)
    same(model, models[names.index(target.model)], "model")
    checkpoint = model.checkpoint
    same(checkpoint.kind, che.MODEL_KIND_EMBEDDER, "kind")
    expect(len(bytes.fromhex(checkpoint.digest)) == 32, "the digest is no SHA-256")
    expect(checkpoint.dimensions > 0 and checkpoint.max_tokens > 2, "sizes")
    expect(checkpoint.ready_workers > 0, "no worker is ready")


def check_unknown_models_are_not_found(target: Target) -> None:
    """NOT_FOUND from `Get` and from `Embed`."""
    request = mod.GetModelRequest(name="no-such-model")
    get = mod_grpc.ModelsStub(target.channel).Get
    refused(grpc.StatusCode.NOT_FOUND, get, request, timeout=TIMEOUT)
    stranger = Target(target.channel, "no-such-model", None)
    refused(grpc.StatusCode.NOT_FOUND, embed, stranger)


def check_workers_are_listed(target: Target) -> None:
    """At least one worker serves the model."""
    stub = clu_grpc.ClusterStub(target.channel)
    workers = stub.ListWorkers(clu.ListWorkersRequest(), timeout=TIMEOUT).workers
    serving = [w for w in workers if w.state == clu.WORKER_STATE_SERVING]
    loaded = {model.name for worker in serving for model in worker.models}
    expect(target.model in loaded, f"no serving worker has {target.model}")


def rerank(target: Target, model: str, documents: list[str], **fields: Any) -> Any:
    """One call of `Rerank`."""
    query = "When does the boat go?"
    request = rer.RerankRequest(model=model, query=query, documents=documents, **fields)
    return rer_grpc.RerankingStub(target.channel).Rerank(request, timeout=TIMEOUT)


def in_order(answer: Any) -> None:
    """Fails where rankings do not descend, equal scores by index."""
    keys = [(-ranking.score, ranking.index) for ranking in answer.rankings]
    same(keys, sorted(keys), "order")


def check_rerank_by_dense_vectors(target: Target) -> None:
    """An embedding model scores by the dot product with the query's vector."""
    answer = rerank(target, target.model, TEXTS)
    same(answer.scoring, rer.SCORING_DENSE, "scoring")
    same(answer.score_form, rer.SCORE_FORM_RAW, "form")
    in_order(answer)
    same(sorted(r.index for r in answer.rankings), list(range(len(TEXTS))), "indices")
    query = embed(target, ["When does the boat go?"], input_type=emb.INPUT_TYPE_QUERY)
    documents = embed(target, input_type=emb.INPUT_TYPE_DOCUMENT)
    products = vectors(documents) @ vectors(query)[0]
    scores = np.array([ranking.score for ranking in answer.rankings], np.float32)
    wanted = products[[ranking.index for ranking in answer.rankings]]
    close(scores, wanted, 1e-4 * max(1.0, float(np.abs(products).max())), "scores")


def check_rerank_the_best_only(target: Target) -> None:
    """`top_n`, equal documents, and a single one."""
    best = rerank(target, target.model, TEXTS, top_n=2)
    every = rerank(target, target.model, TEXTS)
    same(
        [r.index for r in best.rankings], [r.index for r in every.rankings[:2]], "best"
    )
    twins = rerank(target, target.model, ["the same"] * 3).rankings
    same([r.index for r in twins], [0, 1, 2], "equal documents")
    same(len({r.score for r in twins}), 1, "scores of equal documents")
    same(len(rerank(target, target.model, TEXTS[:1]).rankings), 1, "one document")


def check_rerank_refusals(target: Target) -> None:
    """Bad fields are named."""
    cases: list[tuple[str, list[str], dict[str, Any]]] = [
        ("documents", [], {}),
        ("documents[0]", [""], {}),
        ("top_n", ["a"], {"top_n": 0}),
        ("score_form", ["a"], {"score_form": rer.SCORE_FORM_SIGMOID}),
        ("score_form", ["a"], {"score_form": 99}),
    ]
    for field, documents, fields in cases:
        found = bad_field(rerank, target, target.model, documents, **fields)
        same(found, field, f"field of {documents} {fields}")


def cross_check_rerank_by_a_cross_encoder(target: Target) -> None:
    """Logits, their logistic function by default, and no vectors to be had."""
    name = str(target.reranker)
    answer = rerank(target, name, TEXTS)
    same(answer.scoring, rer.SCORING_CROSS_ENCODER, "scoring")
    same(answer.score_form, rer.SCORE_FORM_SIGMOID, "form")
    in_order(answer)
    raw = rerank(target, name, TEXTS, score_form=rer.SCORE_FORM_RAW)
    same([r.index for r in raw.rankings], [r.index for r in answer.rankings], "order")
    logits = np.array([r.score for r in raw.rankings], np.float32)
    scores = np.array([r.score for r in answer.rankings], np.float32)
    wanted = (1 / (1 + np.exp(-logits))).astype(np.float32)
    close(scores, wanted, 1e-5, "scores")
    same(answer.provenance.dimensions, 0, "dimensions")
    other = Target(target.channel, name, None)
    same(bad_field(embed, other), "model", "field")


def check_tokens(target: Target) -> None:
    """Tokens cover the text, the special ones stand around it, and `Count` counts them."""
    stub = tok_grpc.TokensStub(target.channel)
    inputs = [*TEXTS, ""]
    request = tok.TokenizeRequest(model=target.model, inputs=inputs)
    sequences = stub.Tokenize(request, timeout=TIMEOUT).sequences
    same(len(sequences), len(inputs), "sequences")
    for text, sequence in zip(inputs, sequences, strict=True):
        tokens = list(sequence.tokens)
        expect(tokens[0].special and tokens[-1].special, "no special tokens around it")
        raw, last = text.encode(), 0
        for token in tokens[1:-1]:
            expect(last <= token.start <= token.end <= len(raw), f"offsets of {token}")
            raw[token.start : token.end].decode()
            last = token.start
    request = tok.CountRequest(model=target.model, inputs=inputs)
    counts = list(stub.Count(request, timeout=TIMEOUT).counts)
    same(counts, [len(sequence.tokens) for sequence in sequences], "counts")
    same(list(embed(target).input_tokens), counts[:-1], "tokens of Embed")
    bare = tok.CountRequest(
        model=target.model, inputs=inputs, without_special_tokens=True
    )
    same(
        list(stub.Count(bare, timeout=TIMEOUT).counts),
        [count - 2 for count in counts],
        "counts without special tokens",
    )


def check_health(target: Target) -> None:
    """SERVING, now and on the watch; a service that is not there is NOT_FOUND."""
    stub = health_pb2_grpc.HealthStub(target.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ["", f"{PACKAGE}.Embeddings"]:
        request = health_pb2.HealthCheckRequest(service=service)
        same(
            stub.Check(request, timeout=TIMEOUT).status,
            serving,
            f"health of {service!r}",
        )
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=TIMEOUT)
    same(next(watch).status, serving, "first status of the watch")
    watch.cancel()
    try:
        stub.Check(
            health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=TIMEOUT
        )
    except grpc.RpcError as error:
        same(error.code(), grpc.StatusCode.NOT_FOUND, "code")
    else:
        raise AssertionError("no error")


def check_reflection_lists_services(target: Target) -> None:
    """Both versions of reflection, whose messages are the same, name all services."""
    wanted = {
        f"{PACKAGE}.{name}" for name in ["Embeddings", "Reranking", "Tokens", "Models"]
    }
    for version in ["v1", "v1alpha"]:
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        call = target.channel.stream_stream(
            path,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        request = reflection_pb2.ServerReflectionRequest(list_services="*")
        answer = next(call(iter([request]), timeout=TIMEOUT))
        names = {service.name for service in answer.list_services_response.service}
        expect(wanted <= names, f"{version} lists only {sorted(names)}")
        expect(
            "beige.worker.v1" not in str(names), "the workers' own protocol is public"
        )


def check_reflection_suffices_for_a_call(target: Target) -> None:
    """A client without any protos finds the types, fills a request and reads the answer."""
    pool = descriptor_pool.DescriptorPool(
        ProtoReflectionDescriptorDatabase(target.channel)
    )
    method = pool.FindServiceByName(f"{PACKAGE}.Embeddings").FindMethodByName("Embed")
    request_type = message_factory.GetMessageClass(method.input_type)
    answer_type = message_factory.GetMessageClass(method.output_type)
    call = target.channel.unary_unary(
        f"/{PACKAGE}.Embeddings/Embed",
        request_serializer=request_type.SerializeToString,
        response_deserializer=answer_type.FromString,
    )
    answer = call(request_type(model=target.model, inputs=TEXTS), timeout=TIMEOUT)
    same(answer.provenance.model, target.model, "model")
    close(vectors(answer), vectors(embed(target)), CLOSE, "vectors")
