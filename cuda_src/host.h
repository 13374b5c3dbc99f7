// from torch tensors to a Problem, for the host functions of both backends
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <utility>
#include <vector>

#include "dcnv4.h"

namespace yolo_dcnv4 {

using torch::stable::Tensor;

struct Options {
  int64_t groups;
  const std::vector<int64_t>& window;
  double offset_scale;
  bool remove_center, softmax;
};

// Python checks arguments with readable messages; this guards callers that come straight to the dispatcher
Problem make_problem(const Tensor& value, const Tensor& offset_mask, const Options& options);
void set_grad_output(Problem& problem, const Tensor& grad_output);

// contiguous (N, H_out, W_out, C)
Tensor empty_output(const Tensor& value, const Problem& problem);

// value and offset_mask as views of one tensor (N, H, W, C + R)
std::pair<Tensor, Tensor> unpack(const Tensor& packed, int64_t channels);

// Room for what the backward kernels write. `value` and `offset_mask` are contiguous, empty where they are not needed,
// or views of `packed`. Padding is left to the kernels.
struct Gradients {
  Tensor value, offset_mask, packed;

  Gradients(const Tensor& value, const Tensor& offset_mask, bool needs_value, bool needs_offset_mask);
  Gradients(const Tensor& packed, int64_t channels);
};

BackwardArgs backward_args(
    const Problem& problem, const Tensor& grad_output, const Tensor& value, const Tensor& offset_mask,
    const Gradients& gradients);

}  // namespace yolo_dcnv4
