// PyTorch's own process groups, as C functions; see shim.cpp for how errors come out.
//
// A group is Gloo's over a TCP store. Every call waits for its end or for the group's timeout.

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <string>
#include <vector>

#include "guarded.hpp"

namespace {

using beige::guarded;
using std::chrono::milliseconds;

struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  milliseconds timeout;

  void finish(const c10::intrusive_ptr<c10d::Work>& work) const { work->wait(timeout); }
};

}  // namespace

extern "C" {

// A store that listens on `port` of all addresses (0: any free port) when `serves`, else one that speaks to it.
int beige_store_open(const char* host, uint16_t port, int32_t serves, int64_t timeout_ms,
                     c10::intrusive_ptr<c10d::TCPStore>** out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves != 0;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    *out = new c10::intrusive_ptr<c10d::TCPStore>(c10::make_intrusive<c10d::TCPStore>(host, options));
  });
}

uint16_t beige_store_port(const c10::intrusive_ptr<c10d::TCPStore>* store) { return (*store)->getPort(); }

void beige_store_close(c10::intrusive_ptr<c10d::TCPStore>* store) {
  guarded([&] { delete store; });
}

// Joins the group `name` as rank `rank` of `size`; its connections come in at `address`.
int beige_group_join(const c10::intrusive_ptr<c10d::TCPStore>* store, const char* name, const char* address,
                     int32_t rank, int32_t size, int64_t timeout_ms, Group** out) {
  return guarded([&] {
    const auto timeout = milliseconds(timeout_ms);
    const auto prefixed = c10::make_intrusive<c10d::PrefixStore>(name, *store);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(prefixed, rank, size, options);
    *out = new Group{prefixed, std::move(gloo), timeout};
  });
}

// Breaks off what is under way; calls fail from now on.
int beige_group_abort(const Group* group) {
  return guarded([&] { group->gloo->abort(); });
}

void beige_group_leave(Group* group) {
  guarded([&] { delete group; });
}

int beige_group_barrier(const Group* group) {
  return guarded([&] { group->finish(group->gloo->barrier()); });
}

// Overwrites `tensor` with that of rank `root`.
int beige_group_broadcast(const Group* group, const at::Tensor* tensor, int64_t root) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    group->finish(group->gloo->broadcast(tensors, options));
  });
}

// Overwrites `tensor` with the sum over ranks.
int beige_group_all_reduce(const Group* group, const at::Tensor* tensor) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    group->finish(group->gloo->allreduce(tensors));
  });
}

// Writes this rank's share of the sum over ranks of `tensor`, cut into `size` equal parts along its first dimension,
// into `out`.
int beige_group_reduce_scatter(const Group* group, at::Tensor* out, at::Tensor* tensor) {
  return guarded([&] { group->finish(group->gloo->_reduce_scatter_base(*out, *tensor)); });
}

// Writes every rank's `tensor` into `out`, `size` tensors of its shape.
int beige_group_all_gather(const Group* group, const at::Tensor* tensor, const at::Tensor* const* out, int64_t size) {
  return guarded([&] {
    std::vector<at::Tensor> inputs{*tensor};
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int64_t i = 0; i < size; ++i) outputs[0].push_back(*out[i]);
    group->finish(group->gloo->allgather(outputs, inputs));
  });
}

}  // extern "C"
