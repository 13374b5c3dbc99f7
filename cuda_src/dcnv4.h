// what the host functions hand to the kernels: plain data, no torch headers
#pragma once

#include <cstdint>

namespace yolo_dcnv4 {

enum class DType { float64, float32, float16, bfloat16 };

constexpr int bytes_of(DType dtype) {
  constexpr int bytes[] = {8, 4, 2, 2};
  return bytes[static_cast<int>(dtype)];
}

struct Window {
  int kernel_h, kernel_w;
  int stride_h, stride_w;
  int pad_h, pad_w;
  int dilation_h, dilation_w;
};

// strides in elements; the last dimension is dense
struct Strides {
  int64_t n, h, w;
};

struct Problem {
  DType dtype;
  int64_t batch;
  int height, width;
  int out_height, out_width;
  int groups, group_width;  // G and D: C = G * D
  int points;               // K, without the centre where it is removed
  int64_t row;              // R, entries of offset_mask a pixel
  Window window;
  double offset_scale;
  bool remove_center, softmax;
  Strides value, offset_mask, grad_output;

  int64_t channels() const { return static_cast<int64_t>(groups) * group_width; }
  int64_t out_pixels() const { return static_cast<int64_t>(out_height) * out_width; }
  int64_t pixels() const { return static_cast<int64_t>(height) * width; }
};

struct ForwardArgs {
  Problem problem;
  const void* value;
  const void* offset_mask;
  void* out;  // contiguous
};

struct BackwardArgs {
  Problem problem;
  const void* grad_output;
  const void* value;
  const void* offset_mask;
  // gradients lie pixel by pixel without gaps but those of the row lengths, which count elements; null: not needed
  void* grad_value;
  void* grad_offset_mask;
  int64_t grad_value_row, grad_offset_mask_row;
};

}  // namespace yolo_dcnv4
