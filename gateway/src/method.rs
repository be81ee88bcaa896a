//! Every method there is: how its calls end, and who may call it.

use crate::keys::Access::{self, Known, Needs, Open};
use crate::keys::Right;

/// How a call ends when the gateway does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One answer: it is waited for as long as there is grace.
    Call,
    /// Many answers: likewise.
    Stream,
    /// It never ends by itself, and nothing is lost when it does: it is ended as soon as connections are to close.
    Watch,
}

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// `package.Service/Method`.
    pub name: &'static str,
    /// How its calls end.
    pub shape: Shape,
    /// Who may call it.
    pub access: Access,
}

const fn method(name: &'static str, shape: Shape, access: Access) -> Method {
    Method { name, shape, access }
}

const METHODS: [Method; 28] = [
    method("beige.v1.Embeddings/Embed", Shape::Call, Needs(Right::Embed)),
    method("beige.v1.Embeddings/EmbedStream", Shape::Stream, Needs(Right::Embed)),
    method("beige.v1.Reranking/Rerank", Shape::Call, Needs(Right::Rerank)),
    method("beige.v1.Reranking/RerankStream", Shape::Stream, Needs(Right::Rerank)),
    method("beige.v1.Tokens/Tokenize", Shape::Call, Needs(Right::Tokens)),
    method("beige.v1.Tokens/Count", Shape::Call, Needs(Right::Tokens)),
    method("beige.v1.Models/List", Shape::Call, Needs(Right::ModelsRead)),
    method("beige.v1.Models/Get", Shape::Call, Needs(Right::ModelsRead)),
    method("beige.v1.Models/Publish", Shape::Stream, Needs(Right::ModelsWrite)),
    method("beige.v1.Models/ListVersions", Shape::Call, Needs(Right::ModelsRead)),
    method("beige.v1.Models/Promote", Shape::Call, Needs(Right::ModelsWrite)),
    method("beige.v1.Models/Rollback", Shape::Call, Needs(Right::ModelsWrite)),
    method("beige.v1.Models/Retire", Shape::Call, Needs(Right::ModelsWrite)),
    method("beige.v1.Models/Pin", Shape::Call, Needs(Right::ModelsWrite)),
    method("beige.v1.Models/Collect", Shape::Call, Needs(Right::ModelsWrite)),
    method("beige.v1.Models/GetSwap", Shape::Call, Needs(Right::ModelsRead)),
    method("beige.v1.Models/WatchSwap", Shape::Watch, Needs(Right::ModelsRead)),
    method("beige.v1.Cluster/ListWorkers", Shape::Call, Needs(Right::ClusterRead)),
    method("beige.v1.Training/Submit", Shape::Call, Needs(Right::Train)),
    method("beige.v1.Training/Get", Shape::Call, Needs(Right::Train)),
    method("beige.v1.Training/List", Shape::Call, Needs(Right::Train)),
    method("beige.v1.Training/Watch", Shape::Watch, Needs(Right::Train)),
    method("beige.v1.Training/Cancel", Shape::Call, Needs(Right::Train)),
    method("beige.v1.Training/Delete", Shape::Call, Needs(Right::Train)),
    // Those who balance load have no keys, and what the interface is, is no secret.
    method("grpc.health.v1.Health/Check", Shape::Call, Open),
    method("grpc.health.v1.Health/Watch", Shape::Watch, Open),
    method("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Shape::Watch, Open),
    method("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Shape::Watch, Open),
];

/// What is called beside them is counted together, for a caller may invent names.
const OTHER: Method = method("other", Shape::Call, Known);

impl Method {
    /// The method that the path of a request names.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let name = path.strip_prefix('/').unwrap_or(path);
        METHODS.into_iter().find(|known| known.name == name).unwrap_or(OTHER)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use proto::v1;

    use super::*;

    #[test]
    fn methods_are_known_and_inventions_counted_together() {
        let embed = Method::of("/beige.v1.Embeddings/Embed");
        assert_eq!((embed.name, embed.access), ("beige.v1.Embeddings/Embed", Needs(Right::Embed)));
        assert_eq!(Method::of("/grpc.health.v1.Health/Watch").shape, Shape::Watch);
        for invented in ["/", "", "/beige.v1.Embeddings/Embed/", "/beige.v1.Embeddings/Delete", "/x/y"] {
            assert_eq!(Method::of(invented), OTHER, "{invented:?}");
        }
    }

    #[test]
    fn every_method_of_the_interface_has_a_shape_and_an_access() {
        let descriptors = FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
        let mut known = 0;
        for file in &descriptors.file {
            for service in file.service.iter().filter(|_| file.package() == "beige.v1") {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    assert!(matches!(Method::of(&path).access, Needs(_)), "{path}");
                    known += 1;
                }
            }
        }
        assert!(known > 10, "{known}");
    }
}
