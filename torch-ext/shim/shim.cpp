// What libtorch has and tch does not wrap, as C functions.
//
// Every function returns 0, or the number of an error whose text `beige_last_error` gives. No exception
// leaves this file. Tensors come in as borrowed pointers and go out as new ones that the caller owns.

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <string>
#include <utility>
#include <vector>

#include "guarded.hpp"

namespace beige {

thread_local std::string last_error;

Code fail(Code code, const char* text) noexcept {
  try {
    last_error = text;
  } catch (...) {
    last_error.clear();
  }
  return code;
}

}  // namespace beige

namespace {

using beige::guarded;

}  // namespace

extern "C" {

const char* beige_last_error() { return beige::last_error.c_str(); }

// Attention within each of many sequences laid end to end (FlashAttention-2; CUDA, half precision only).
// `query`, `key`, `value` [tokens, heads, width]; `starts` [sequences + 1] int32: where each begins.
int beige_varlen_attention(const at::Tensor* query, const at::Tensor* key, const at::Tensor* value,
                           const at::Tensor* starts, int64_t longest, at::Tensor** out) {
  return guarded([&] {
    auto result = at::_flash_attention_forward(*query, *key, *value, *starts, *starts, longest, longest, 0.0, false, false);
    *out = new at::Tensor(std::move(std::get<0>(result)));
  });
}

// One step of AdamW over `count` parameters in place, as torch.optim.AdamW(fused=True) takes it. `groups` holds five
// lists of `count` tensors one after the other: parameters, gradients, first and second moments, step numbers.
int beige_adamw(const at::Tensor* const* groups, int64_t count, double rate, const double* betas, double decay,
                double epsilon) {
  return guarded([&] {
    const auto list = [&](int64_t group) {
      std::vector<at::Tensor> tensors;
      for (int64_t i = 0; i < count; ++i) tensors.push_back(*groups[group * count + i]);
      return tensors;
    };
    const at::NoGradGuard no_grad;
    auto parameters = list(0), gradients = list(1), first = list(2), second = list(3), steps = list(4);
    for (int64_t i = 0; i < count; ++i) {
      // The kernel takes shapes on trust.
      for (const auto* other : {&gradients[i], &first[i], &second[i]}) {
        TORCH_CHECK(other->sizes() == parameters[i].sizes() && other->is_contiguous(), "a tensor of the optimiser has ",
                    other->sizes(), " where its parameter has ", parameters[i].sizes());
      }
      TORCH_CHECK(parameters[i].is_contiguous(), "a parameter is not contiguous");
      steps[i].add_(1);
    }
    at::_fused_adamw_(parameters, gradients, first, second, {}, steps, rate, betas[0], betas[1], decay, epsilon,
                      /*amsgrad=*/false, /*maximize=*/false);
  });
}

// A tensor over memory it does not own; `release(owner)` is called when nothing refers to it any more.
int beige_borrow(void* data, const int64_t* shape, int64_t rank, int8_t kind, void* owner, void (*release)(void*),
                 at::Tensor** out) {
  return guarded([&] {
    const auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(kind));
    const auto sizes = at::IntArrayRef(shape, static_cast<size_t>(rank));
    *out = new at::Tensor(at::from_blob(data, sizes, [owner, release](void*) { release(owner); }, options));
  });
}

// Bytes of a CUDA device: free ones, once the allocator has given back what it only keeps for later, and all.
int beige_cuda_memory(int8_t device, uint64_t* free, uint64_t* total) {
  return guarded([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    if (allocator->initialized()) allocator->emptyCache();
    const auto info = allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(device));
    *free = info.first;
    *total = info.second;
  });
}

}  // extern "C"
