// from torch tensors to a Problem, for the host functions of both backends
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

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
Tensor empty_like_dense(const Tensor& tensor);
Tensor zeros_like_dense(const Tensor& tensor);

}  // namespace yolo_dcnv4
