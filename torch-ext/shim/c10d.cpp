// PyTorch's own process groups, as C functions; see shim.cpp for how errors come out.
//
// A group is Gloo's on the processor and NCCL's on a CUDA device, over a TCP store. Every call waits for its end or for
// the group's timeout.

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "guarded.hpp"
#ifdef USE_C10D_NCCL
#include "nccl.hpp"
#endif

namespace {

using beige::guarded;
using std::chrono::milliseconds;

// Ranks that leave wait so long for one another.
constexpr milliseconds kFarewell(10'000);

struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> backend;
  at::Device device;
  milliseconds timeout;
  // Whether ranks may be at different points.
  mutable std::atomic<bool> broken{false};

  // Refuses what other ranks would not answer any more.
  void check() const { TORCH_CHECK(!broken, "the group has failed before or was broken off: join another one"); }

  // With a timeout, NCCL too returns when the device has done it, and not when it is told to.
  void finish(const c10::intrusive_ptr<c10d::Work>& work) const {
    try {
      work->wait(timeout);
    } catch (...) {
      broken = true;
      throw;
    }
  }

  void abort() const {
    broken = true;
    backend->abort();
  }

  // Another rank's device may still read this one's memory, which NCCL frees without asking: all say first that they
  // are done.
  void say_farewell() const {
    const auto key = [](int rank) { return "left/" + std::to_string(rank); };
    try {
      std::vector<std::string> all;
      for (int rank = 0; rank < backend->getSize(); ++rank) all.push_back(key(rank));
      store->set(key(backend->getRank()), std::vector<uint8_t>{1});
      store->wait(all, std::min(timeout, kFarewell));
    } catch (const std::exception&) {
      // The store goes with the rank that serves it, when all have spoken.
    }
  }
};

c10::intrusive_ptr<c10d::Backend> gloo(const c10::intrusive_ptr<c10d::Store>& store, const char* address, int rank,
                                       int size, milliseconds timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
}

c10::intrusive_ptr<c10d::Backend> join(const c10::intrusive_ptr<c10d::Store>& store, const char* address, int rank,
                                       int size, milliseconds timeout, at::Device device) {
  if (device.is_cpu()) return gloo(store, address, rank, size, timeout);
#ifdef USE_C10D_NCCL
  return beige::nccl(store, rank, size, timeout, device);
#else
  TORCH_CHECK(false, "this build has no NCCL");
#endif
}

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

// Joins the group `name` as rank `rank` of `size` on the CUDA device `device`, on the processor where it is below 0; Gloo's
// connections come in at `address`.
int beige_group_join(const c10::intrusive_ptr<c10d::TCPStore>* store, const char* name, const char* address,
                     int32_t rank, int32_t size, int64_t timeout_ms, int8_t device, Group** out) {
  return guarded([&] {
    const auto timeout = milliseconds(timeout_ms);
    const auto place = device < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, device);
    const auto prefixed = c10::make_intrusive<c10d::PrefixStore>(name, *store);
    *out = new Group{prefixed, join(prefixed, address, rank, size, timeout, place), place, timeout};
  });
}

// Calls fail from now on. What is under way is broken off by NCCL; Gloo waits for its end or for the timeout.
int beige_group_abort(const Group* group) {
  return guarded([&] { group->abort(); });
}

void beige_group_leave(Group* group) {
  guarded([&] {
    const std::unique_ptr<Group> owned(group);
    if (owned->device.is_cpu()) return;
    if (!owned->broken) owned->say_farewell();
    owned->abort();
  });
}

int beige_group_barrier(const Group* group) {
  return guarded([&] {
    group->check();
    c10d::BarrierOptions options;
    if (group->device.is_cuda()) options.device = group->device;
    group->finish(group->backend->barrier(options));
  });
}

// Overwrites `tensor` with that of rank `root`.
int beige_group_broadcast(const Group* group, const at::Tensor* tensor, int64_t root) {
  return guarded([&] {
    group->check();
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    group->finish(group->backend->broadcast(tensors, options));
  });
}

// Overwrites `tensor` with the sum over ranks.
int beige_group_all_reduce(const Group* group, const at::Tensor* tensor) {
  return guarded([&] {
    group->check();
    std::vector<at::Tensor> tensors{*tensor};
    group->finish(group->backend->allreduce(tensors));
  });
}

// Writes this rank's share of the sum over ranks of `tensor`, cut into `size` equal parts along its first dimension,
// into `out`.
int beige_group_reduce_scatter(const Group* group, at::Tensor* out, at::Tensor* tensor) {
  return guarded([&] {
    group->check();
    group->finish(group->backend->_reduce_scatter_base(*out, *tensor));
  });
}

// Writes every rank's `tensor` into `out`, `size` tensors of its shape.
int beige_group_all_gather(const Group* group, const at::Tensor* tensor, const at::Tensor* const* out, int64_t size) {
  return guarded([&] {
    group->check();
    std::vector<at::Tensor> inputs{*tensor};
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int64_t i = 0; i < size; ++i) outputs[0].push_back(*out[i]);
    group->finish(group->backend->allgather(outputs, inputs));
  });
}

}  // extern "C"
