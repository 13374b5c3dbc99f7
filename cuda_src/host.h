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

// A tensor of four dimensions, dense in the last, or a part of its last dimension. A view would be an operator of its
// own, which takes as long as a launch.
struct Map {
  DType dtype;
  void* data;
  int64_t n, h, w, c;
  Strides strides;
};

Map map_of(const char* name, const Tensor& tensor);

// value and offset_mask as parts of one map (N, H, W, C + R)
std::pair<Map, Map> split(const Map& packed, int64_t channels);

// Python checks arguments with readable messages; this guards callers that come straight to the dispatcher
Problem make_problem(const Map& value, const Map& offset_mask, const Options& options);
void set_grad_output(Problem& problem, const Map& grad_output);

// an element of what is allocated beside a tensor: its own, or one for sums
enum class Element { same, float32, int64 };

// contiguous, on the device of a tensor
Tensor room(const Tensor& like, const std::vector<int64_t>& sizes, Element element = Element::same);

// contiguous (N, H_out, W_out, C)
Tensor empty_output(const Tensor& like, const Problem& problem);

// Room for what the backward kernels write: two tensors, empty where one is not needed, or one for both. Padding is
// left to the kernels.
struct Gradients {
  Tensor value, offset_mask, packed;
  // null where not needed
  void *value_data, *offset_mask_data;
  int64_t value_row, offset_mask_row;

  Gradients(const Tensor& like, const Problem& problem, bool needs_value, bool needs_offset_mask);
  Gradients(const Tensor& like, const Problem& problem);
};

BackwardArgs backward_args(
    const Problem& problem, const Map& grad_output, const Map& value, const Map& offset_mask,
    const Gradients& gradients);

}  // namespace yolo_dcnv4
