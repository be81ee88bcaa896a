// oneDNN's matrix products, as C functions; see shim.cpp for how errors come out.

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string_view>

#include "guarded.hpp"

namespace {

using beige::guarded;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Pack = at::Tensor(const at::Tensor&, std::optional<int64_t>);
using Linear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                          c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// activation(input @ weight^T + bias), `weight` packed or plain; a plain one may be a transposed view.
at::Tensor product(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   std::string_view activation = "none") {
  static const auto linear = find<Linear>("mkldnn::_linear_pointwise");
  const auto algorithm = activation == "gelu" ? std::optional<std::string_view>("none") : std::nullopt;
  return linear.call(input, weight, bias, activation, c10::List<std::optional<at::Scalar>>(), algorithm);
}

// A linear layer in training: three of oneDNN's products, where autograd's own layer has three of MKL's.
struct Trained : torch::autograd::Function<Trained> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    context->save_for_backward({input, weight});
    context->saved_data["bias"] = bias.has_value();
    return product(input, weight, bias);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto& input = saved[0];
    const auto& weight = saved[1];
    const auto gradient = gradients[0].contiguous();
    variable_list found(3);
    if (context->needs_input_grad(0)) found[0] = product(gradient, weight.t(), std::nullopt);
    if (context->needs_input_grad(1)) found[1] = product(gradient.t(), input.t(), std::nullopt);
    // A bias that is not there is not counted among inputs.
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) found[2] = gradient.sum(0);
    return found;
  }
};

}  // namespace

extern "C" {

// oneDNN's own layout of `weight` [out, in] for inputs of about `rows` rows.
int beige_pack_linear(const at::Tensor* weight, int64_t rows, at::Tensor** out) {
  return guarded([&] {
    static const auto pack = find<Pack>("mkldnn::_reorder_linear_weight");
    *out = new at::Tensor(pack.call(*weight, rows));
  });
}

// act(input @ weight^T + bias), `weight` packed. `activation` is one of oneDNN's names, "none" for none.
int beige_packed_linear(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias,
                        const char* activation, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(product(*input, *weight, *bias, activation)); });
}

// input @ weight^T + bias of matrices in single precision on the processor, open to gradients; `bias` may be null.
int beige_trained_linear(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, at::Tensor** out) {
  return guarded([&] {
    TORCH_CHECK(input->dim() == 2 && weight->dim() == 2 && input->size(1) == weight->size(1), "a product of ",
                input->sizes(), " and the transposed ", weight->sizes());
    const auto offset = bias ? std::optional<at::Tensor>(*bias) : std::nullopt;
    *out = new at::Tensor(Trained::apply(*input, *weight, offset));
  });
}

}  // extern "C"
