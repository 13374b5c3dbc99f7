#include "host.h"

#include <limits>
#include <tuple>

namespace yolo_dcnv4 {

namespace {

DType dtype_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case torch::headeronly::ScalarType::Double:
      return DType::float64;
    case torch::headeronly::ScalarType::Float:
      return DType::float32;
    case torch::headeronly::ScalarType::Half:
      return DType::float16;
    case torch::headeronly::ScalarType::BFloat16:
      return DType::bfloat16;
    default:
      STD_TORCH_CHECK(
          false, "value must be float64, float32, float16 or bfloat16, got scalar type ",
          static_cast<int>(value.scalar_type()));
  }
}

Strides strides_of(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must have 4 dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(
      tensor.size(3) <= 1 || tensor.stride(3) == 1, name, " must be dense in its last dimension, got stride ",
      tensor.stride(3));
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

int narrow(const char* name, int64_t value, int64_t minimum) {
  STD_TORCH_CHECK(
      value >= minimum && value <= std::numeric_limits<int>::max(), name, " must lie in [", minimum, ", ",
      std::numeric_limits<int>::max(), "], got ", value);
  return static_cast<int>(value);
}

// not positive where the window does not fit
int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace

Problem make_problem(const Tensor& value, const Tensor& offset_mask, const Options& options) {
  Problem p{};
  p.dtype = dtype_of(value);
  STD_TORCH_CHECK(
      offset_mask.scalar_type() == value.scalar_type(), "value and offset_mask must have one dtype, got scalar types ",
      static_cast<int>(value.scalar_type()), " and ", static_cast<int>(offset_mask.scalar_type()));
  p.value = strides_of("value", value);
  p.offset_mask = strides_of("offset_mask", offset_mask);

  const auto& w = options.window;
  STD_TORCH_CHECK(w.size() == 8, "window must hold 8 ints, got ", w.size());
  p.window = {narrow("kernel height", w[0], 1),   narrow("kernel width", w[1], 1),   narrow("stride height", w[2], 1),
              narrow("stride width", w[3], 1),    narrow("padding height", w[4], 0), narrow("padding width", w[5], 0),
              narrow("dilation height", w[6], 1), narrow("dilation width", w[7], 1)};

  p.batch = value.size(0);
  p.height = narrow("height of value", value.size(1), 1);
  p.width = narrow("width of value", value.size(2), 1);
  p.out_height = narrow("height of offset_mask", offset_mask.size(1), 1);
  p.out_width = narrow("width of offset_mask", offset_mask.size(2), 1);
  const int64_t out_h = output_size(p.height, w[0], w[2], w[4], w[6]);
  const int64_t out_w = output_size(p.width, w[1], w[3], w[5], w[7]);
  STD_TORCH_CHECK(
      offset_mask.size(0) == p.batch && p.out_height == out_h && p.out_width == out_w, "offset_mask must be of shape (",
      p.batch, ", ", out_h, ", ", out_w, ", R), got (", offset_mask.size(0), ", ", p.out_height, ", ", p.out_width,
      ", R)");

  p.groups = narrow("groups", options.groups, 1);
  const int channels = narrow("channels of value", value.size(3), 1);
  STD_TORCH_CHECK(channels % p.groups == 0, "groups must divide the ", channels, " channels of value, got ", p.groups);
  p.group_width = channels / p.groups;
  p.remove_center = options.remove_center;
  STD_TORCH_CHECK(
      !p.remove_center || (w[0] % 2 == 1 && w[1] % 2 == 1), "remove_center needs an odd kernel, got ", w[0], " x ",
      w[1]);
  p.points = narrow("number of sampling points", w[0] * w[1] - (p.remove_center ? 1 : 0), 1);
  p.row = offset_mask.size(3);
  STD_TORCH_CHECK(
      p.row >= 3 * static_cast<int64_t>(p.groups) * p.points, "offset_mask must have at least ",
      3 * static_cast<int64_t>(p.groups) * p.points, " entries in its last dimension, got ", p.row);
  p.softmax = options.softmax;
  p.offset_scale = options.offset_scale;
  return p;
}

void set_grad_output(Problem& p, const Tensor& grad_output) {
  p.grad_output = strides_of("grad_output", grad_output);
  STD_TORCH_CHECK(
      grad_output.size(0) == p.batch && grad_output.size(1) == p.out_height && grad_output.size(2) == p.out_width &&
          grad_output.size(3) == p.channels(),
      "grad_output must be of shape (", p.batch, ", ", p.out_height, ", ", p.out_width, ", ", p.channels(), ")");
  STD_TORCH_CHECK(dtype_of(grad_output) == p.dtype, "grad_output must have the dtype of value");
}

Tensor empty_output(const Tensor& value, const Problem& p) {
  return torch::stable::new_empty(value, {p.batch, p.out_height, p.out_width, p.channels()});
}

std::pair<Tensor, Tensor> unpack(const Tensor& packed, int64_t channels) {
  STD_TORCH_CHECK(packed.dim() == 4, "packed must have 4 dimensions, got ", packed.dim());
  STD_TORCH_CHECK(
      channels >= 1 && channels < packed.size(3), "channels must lie in [1, ", packed.size(3) - 1, "], got ", channels);
  // narrow takes its tensor by mutable reference
  Tensor whole = packed;
  return {
      torch::stable::narrow(whole, 3, 0, channels),
      torch::stable::narrow(whole, 3, channels, packed.size(3) - channels)};
}

namespace {

Tensor room_like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

}  // namespace

Gradients::Gradients(const Tensor& value, const Tensor& offset_mask, bool needs_value, bool needs_offset_mask)
    : value(needs_value ? room_like(value) : torch::stable::new_empty(value, {0})),
      offset_mask(needs_offset_mask ? room_like(offset_mask) : torch::stable::new_empty(value, {0})) {}

Gradients::Gradients(const Tensor& packed, int64_t channels) : packed(room_like(packed)) {
  std::tie(value, offset_mask) = unpack(this->packed, channels);
}

BackwardArgs backward_args(
    const Problem& p, const Tensor& grad_output, const Tensor& value, const Tensor& offset_mask,
    const Gradients& gradients) {
  const auto pointer = [](const Tensor& t) { return t.numel() ? t.data_ptr() : nullptr; };
  const bool packed = gradients.packed.defined();
  const int64_t row = p.channels() + p.row;
  return {
      p,
      grad_output.data_ptr(),
      value.data_ptr(),
      offset_mask.data_ptr(),
      pointer(gradients.value),
      pointer(gradients.offset_mask),
      packed ? row : p.channels(),
      packed ? row : p.row};
}

}  // namespace yolo_dcnv4

STABLE_TORCH_LIBRARY(yolo_dcnv4, m) {
  m.def(
      "dcnv4(Tensor value, Tensor offset_mask, int groups, int[] window, float offset_scale, bool remove_center, "
      "bool softmax) -> Tensor");
  m.def(
      "dcnv4_backward(Tensor grad_output, Tensor value, Tensor offset_mask, int groups, int[] window, "
      "float offset_scale, bool remove_center, bool softmax, bool needs_value, bool needs_offset_mask, "
      "bool deterministic) -> (Tensor, Tensor)");
  // value and offset_mask side by side, as one projection writes them, and one gradient for both
  m.def(
      "dcnv4_packed(Tensor packed, int groups, int[] window, float offset_scale, bool remove_center, bool softmax, "
      "int channels) -> Tensor");
  m.def(
      "dcnv4_packed_backward(Tensor grad_output, Tensor packed, int groups, int[] window, float offset_scale, "
      "bool remove_center, bool softmax, int channels, bool deterministic) -> Tensor");
  m.def("cuda_obstacle(int device) -> str");
  m.def("cpu_capability() -> str");
}
