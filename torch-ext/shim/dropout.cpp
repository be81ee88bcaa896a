// Dropout that keeps no mask, as a C function; see shim.cpp for how errors come out.

#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "guarded.hpp"
#include "thinning.hpp"

namespace {

using beige::guarded;
using beige::Thinning;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `input`, thinned, plus `rest`; both dense and of one shape.
at::Tensor thinned(const at::Tensor& input, const std::optional<at::Tensor>& rest, const Thinning& how) {
  auto out = at::empty_like(input);
  auto config = at::TensorIteratorConfig();
  config.add_output(out).add_const_input(input);
  if (rest) config.add_const_input(*rest);
  // The iterator shares the numbers out among libtorch's threads.
  auto iterator = config.build();
  const char* const start = reinterpret_cast<const char*>(out.const_data_ptr<float>());
  iterator.for_each([&](char** data, const int64_t* strides, int64_t count) {
    TORCH_CHECK(count == 1 || strides[0] == sizeof(float), "numbers that are not side by side");
    const auto first = static_cast<uint64_t>(data[0] - start) / sizeof(float);
    const auto* added = rest ? reinterpret_cast<const float*>(data[2]) : nullptr;
    beige::thin(reinterpret_cast<float*>(data[0]), reinterpret_cast<const float*>(data[1]), added, first,
                static_cast<uint64_t>(count), how);
  });
  return out;
}

// The nearest share that 16 bits can tell: what is kept grows by as much as that takes, so that sums keep their size.
Thinning thinning(double share, int64_t seed) {
  constexpr double kRange = 65536.0;
  const double threshold = std::min(std::round(share * kRange), kRange - 1.0);
  const double scale = kRange / (kRange - threshold);
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(threshold), static_cast<float>(scale)};
}

// What fell is found again from the seed when the gradient comes.
struct Dropped : torch::autograd::Function<Dropped> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const std::optional<at::Tensor>& rest,
                            double share, int64_t seed) {
    context->saved_data["rest"] = rest.has_value();
    context->saved_data["share"] = share;
    context->saved_data["seed"] = seed;
    return thinned(input, rest, thinning(share, seed));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto& saved = context->saved_data;
    variable_list found(4);
    if (context->needs_input_grad(0)) {
      const auto how = thinning(saved.at("share").toDouble(), saved.at("seed").toInt());
      found[0] = thinned(gradients[0].contiguous(), std::nullopt, how);
    }
    // What is not there is not counted among inputs.
    if (saved.at("rest").toBool() && context->needs_input_grad(1)) found[1] = gradients[0];
    return found;
  }
};

}  // namespace

extern "C" {

// `input` with about `share` of its numbers zeroed and the others grown, plus `rest`, which may be null. Single precision
// on the processor.
int beige_dropout(const at::Tensor* input, const at::Tensor* rest, double share, int64_t seed, at::Tensor** out) {
  return guarded([&] {
    TORCH_CHECK(0.0 <= share && share < 1.0, "a share of ", share, " to drop");
    auto added = rest ? std::optional<at::Tensor>(rest->contiguous()) : std::nullopt;
    if (added) TORCH_CHECK(added->sizes() == input->sizes(), "a sum of ", input->sizes(), " and ", added->sizes());
    *out = new at::Tensor(Dropped::apply(input->contiguous(), added, share, seed));
  });
}

}  // extern "C"
