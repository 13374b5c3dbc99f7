#include "host.h"

#include <limits>
#include <string>

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

const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float64", "float32", "float16", "bfloat16"};
  return names[static_cast<int>(dtype)];
}

// null where an empty tensor has no memory
void* part_of(void* data, int64_t elements, DType dtype) {
  return data ? static_cast<char*>(data) + elements * bytes_of(dtype) : nullptr;
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

Map map_of(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must have 4 dimensions, got ", tensor.dim());
  Map map{
      dtype_of(tensor),
      tensor.data_ptr(),
      tensor.size(0),
      tensor.size(1),
      tensor.size(2),
      tensor.size(3),
      {tensor.stride(0), tensor.stride(1), tensor.stride(2)}};
  STD_TORCH_CHECK(
      map.c <= 1 || tensor.stride(3) == 1, name, " must be dense in its last dimension, got stride ", tensor.stride(3));
  return map;
}

std::pair<Map, Map> split(const Map& packed, int64_t channels) {
  STD_TORCH_CHECK(channels >= 1 && channels < packed.c, "channels must lie in [1, ", packed.c - 1, "], got ", channels);
  Map value = packed, offset_mask = packed;
  value.c = channels;
  offset_mask.c = packed.c - channels;
  offset_mask.data = part_of(packed.data, channels, packed.dtype);
  return {value, offset_mask};
}

Problem make_problem(const Map& value, const Map& offset_mask, const Options& options) {
  Problem p{};
  p.dtype = value.dtype;
  STD_TORCH_CHECK(
      offset_mask.dtype == value.dtype, "value and offset_mask must have one dtype, got ", name_of(value.dtype),
      " and ", name_of(offset_mask.dtype));
  p.value = value.strides;
  p.offset_mask = offset_mask.strides;

  const auto& w = options.window;
  STD_TORCH_CHECK(w.size() == 8, "window must hold 8 ints, got ", w.size());
  p.window = {narrow("kernel height", w[0], 1),   narrow("kernel width", w[1], 1),   narrow("stride height", w[2], 1),
              narrow("stride width", w[3], 1),    narrow("padding height", w[4], 0), narrow("padding width", w[5], 0),
              narrow("dilation height", w[6], 1), narrow("dilation width", w[7], 1)};

  p.batch = value.n;
  p.height = narrow("height of value", value.h, 1);
  p.width = narrow("width of value", value.w, 1);
  p.out_height = narrow("height of offset_mask", offset_mask.h, 1);
  p.out_width = narrow("width of offset_mask", offset_mask.w, 1);
  const int64_t out_h = output_size(p.height, w[0], w[2], w[4], w[6]);
  const int64_t out_w = output_size(p.width, w[1], w[3], w[5], w[7]);
  STD_TORCH_CHECK(
      offset_mask.n == p.batch && p.out_height == out_h && p.out_width == out_w, "offset_mask must be of shape (",
      p.batch, ", ", out_h, ", ", out_w, ", R), got (", offset_mask.n, ", ", p.out_height, ", ", p.out_width, ", R)");

  p.groups = narrow("groups", options.groups, 1);
  const int channels = narrow("channels of value", value.c, 1);
  STD_TORCH_CHECK(channels % p.groups == 0, "groups must divide the ", channels, " channels of value, got ", p.groups);
  p.group_width = channels / p.groups;
  p.remove_center = options.remove_center;
  STD_TORCH_CHECK(
      !p.remove_center || (w[0] % 2 == 1 && w[1] % 2 == 1), "remove_center needs an odd kernel, got ", w[0], " x ",
      w[1]);
  p.points = narrow("number of sampling points", w[0] * w[1] - (p.remove_center ? 1 : 0), 1);
  p.row = offset_mask.c;
  STD_TORCH_CHECK(
      p.row >= 3 * static_cast<int64_t>(p.groups) * p.points, "offset_mask must have at least ",
      3 * static_cast<int64_t>(p.groups) * p.points, " entries in its last dimension, got ", p.row);
  p.softmax = options.softmax;
  p.offset_scale = options.offset_scale;
  return p;
}

void set_grad_output(Problem& p, const Map& grad_output) {
  p.grad_output = grad_output.strides;
  STD_TORCH_CHECK(
      grad_output.n == p.batch && grad_output.h == p.out_height && grad_output.w == p.out_width &&
          grad_output.c == p.channels(),
      "grad_output must be of shape (", p.batch, ", ", p.out_height, ", ", p.out_width, ", ", p.channels(), ")");
  STD_TORCH_CHECK(grad_output.dtype == p.dtype, "grad_output must have the dtype of value");
}

namespace {

// torch's own words on what failed last, which it tells from 2.13 on; its macros would print them, too
std::string reason_of_torch() {
#if defined(TORCH_DYNAMIC_VERSION_CALL_2_13_0)
  using torch::stable::detail::torch_shim_bc_const_char_ptr;
  const char* text =
      TORCH_DYNAMIC_VERSION_CALL_2_13_0(torch_exception_get_what_without_backtrace, torch_shim_bc_const_char_ptr);
  if (text) return std::string("; ") + text;
#endif
  return "";
}

}  // namespace

Tensor room(const Tensor& like, const std::vector<int64_t>& sizes, Element element) {
  int32_t dtype = 0, device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  if (element == Element::float32) dtype = aoti_torch_dtype_float32();
  if (element == Element::int64) dtype = aoti_torch_dtype_int64();
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  AtenTensorHandle handle = nullptr;
  const AOTITorchError status = aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype, device_type, device_index, &handle);
  // these words are what ultralytics looks for before it tries a smaller batch
  STD_TORCH_CHECK(
      status == AOTI_TORCH_SUCCESS, "out of memory: no room for ", sizes[0] * strides[0], " elements",
      reason_of_torch());
  return Tensor(handle);
}

Tensor empty_output(const Tensor& like, const Problem& p) {
  return room(like, {p.batch, p.out_height, p.out_width, p.channels()});
}

Gradients::Gradients(const Tensor& like, const Problem& p, bool needs_value, bool needs_offset_mask)
    : value_data(nullptr), offset_mask_data(nullptr), value_row(p.channels()), offset_mask_row(p.row) {
  const std::vector<int64_t> none{0};
  value = room(like, needs_value ? std::vector<int64_t>{p.batch, p.height, p.width, value_row} : none);
  offset_mask =
      room(like, needs_offset_mask ? std::vector<int64_t>{p.batch, p.out_height, p.out_width, offset_mask_row} : none);
  if (needs_value) value_data = value.data_ptr();
  if (needs_offset_mask) offset_mask_data = offset_mask.data_ptr();
}

Gradients::Gradients(const Tensor& like, const Problem& p)
    : packed(room(like, {p.batch, p.height, p.width, p.channels() + p.row})),
      value_data(packed.data_ptr()),
      offset_mask_data(part_of(value_data, p.channels(), p.dtype)),
      value_row(p.channels() + p.row),
      offset_mask_row(value_row) {}

BackwardArgs backward_args(
    const Problem& p, const Map& grad_output, const Map& value, const Map& offset_mask, const Gradients& gradients) {
  return {
      p,
      grad_output.data,
      value.data,
      offset_mask.data,
      gradients.value_data,
      gradients.offset_mask_data,
      gradients.value_row,
      gradients.offset_mask_row};
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
