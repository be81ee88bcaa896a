// NCCL's process groups: compiled with the feature `nccl` alone.

#include "nccl.hpp"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <future>
#include <thread>

namespace beige {

c10::intrusive_ptr<c10d::Backend> nccl(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                       std::chrono::milliseconds timeout, at::Device device) {
  const int devices = c10::cuda::device_count();
  TORCH_CHECK(device.index() < devices, "there is no ", device, ": this machine has ", devices, " CUDA devices");
  c10::cuda::set_device(device.index());

  // Whoever waits looks at the clock and at NCCL's errors itself, and is told. Else a thread would, which ends the
  // process instead of telling; and a recorder would keep what that thread alone lets go.
  c10::utils::set_env("TORCH_NCCL_BLOCKING_WAIT", "1");
  c10::utils::set_env("TORCH_FR_BUFFER_SIZE", "0");
  const auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
  group->setBoundDeviceId(device);

  // NCCL waits without end for a rank that dies while they connect; then its thread is left behind.
  std::packaged_task<void()> connect([group, device] { group->eagerConnectSingleDevice(device); });
  auto connected = connect.get_future();
  std::thread(std::move(connect)).detach();
  TORCH_CHECK(connected.wait_for(timeout) == std::future_status::ready, "ranks have not connected within ",
              timeout.count(), " ms");
  connected.get();
  return group;
}

}  // namespace beige
