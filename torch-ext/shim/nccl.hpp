// NCCL's process groups, where this build has them.

#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>

namespace beige {

// A group on the CUDA device `device`, its ranks connected. The device is the calling thread's from now on.
c10::intrusive_ptr<c10d::Backend> nccl(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                       std::chrono::milliseconds timeout, at::Device device);

}  // namespace beige
