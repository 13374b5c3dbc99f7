#include <torch/csrc/stable/accelerator.h>

#include <limits>
#include <optional>
#include <tuple>

#include "../host.h"
#include "launch.h"

// weak: a CPU-only torch lacks the symbol, and the library must load there too
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace yolo_dcnv4 {

namespace {

void check_cuda(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, " failed: ", cudaGetErrorString(status));
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

int64_t extent(const Strides& strides, int64_t rows, int64_t columns, int64_t last) {
  return (rows - 1) * strides.h + (columns - 1) * strides.w + last;
}

// kernels count inside one image in 32 bits
void check_extents(const Problem& p) {
  const int64_t limit = std::numeric_limits<int32_t>::max();
  const int64_t image = extent(p.value, p.height, p.width, p.channels());
  STD_TORCH_CHECK(image <= limit, "an image of value spans ", image, " elements; the CUDA kernels take up to ", limit);
  STD_TORCH_CHECK(
      p.pixels() * p.channels() <= limit && p.out_pixels() * p.channels() <= limit, "an image of ", p.height, " x ",
      p.width, " x ", p.channels(), " elements with an output of ", p.out_height, " x ", p.out_width,
      " pixels is too large; the CUDA kernels take up to ", limit, " elements an image");
}

Tensor forward_maps(const Tensor& like, const Map& value, const Map& offset_mask, const Options& options) {
  const Problem p = make_problem(value, offset_mask, options);
  check_extents(p);
  const torch::stable::accelerator::DeviceGuard guard(like.get_device());
  Tensor out = empty_output(like, p);
  if (p.batch > 0) {
    const ForwardArgs args{p, value.data, offset_mask.data, out.data_ptr()};
    check_cuda(launch_forward(args, current_stream(like)), "the DCNv4 forward kernel");
  }
  return out;
}

Tensor forward(
    const Tensor& value, const Tensor& offset_mask, int64_t groups, std::vector<int64_t> window, double offset_scale,
    bool remove_center, bool softmax) {
  return forward_maps(
      value, map_of("value", value), map_of("offset_mask", offset_mask),
      {groups, window, offset_scale, remove_center, softmax});
}

Tensor forward_packed(
    const Tensor& packed, int64_t groups, std::vector<int64_t> window, double offset_scale, bool remove_center,
    bool softmax, int64_t channels) {
  const auto [value, offset_mask] = split(map_of("packed", packed), channels);
  return forward_maps(packed, value, offset_mask, {groups, window, offset_scale, remove_center, softmax});
}

bool accumulates_in_place(const Problem& p, bool deterministic) {
  return (p.dtype == DType::float32 || p.dtype == DType::float64) && !deterministic;
}

void run_backward(const BackwardArgs& common, const Tensor& like, bool deterministic) {
  const Problem& p = common.problem;
  CudaBackwardArgs args{common, nullptr, nullptr, deterministic, 0};
  if (p.batch == 0) return;
  args.plane_warps = choose_plane_warps(args);
  const cudaStream_t stream = current_stream(like);
  std::optional<Tensor> sums;
  if (args.grad_value && !args.plane_warps && !accumulates_in_place(p, deterministic)) {
    const int64_t elements = p.batch * p.pixels() * p.channels();
    sums = room(like, {elements + (deterministic ? kBounds : 0)}, deterministic ? Element::int64 : Element::float32);
    args.sums = sums->data_ptr();
    if (deterministic) args.bounds = static_cast<int64_t*>(args.sums) + elements;
  }
  check_cuda(launch_backward(args, stream), "a DCNv4 backward kernel");
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& offset_mask, int64_t groups,
    std::vector<int64_t> window, double offset_scale, bool remove_center, bool softmax, bool needs_value,
    bool needs_offset_mask, bool deterministic) {
  const Map pixels = map_of("value", value), records = map_of("offset_mask", offset_mask);
  const Map grad = map_of("grad_output", grad_output);
  Problem p = make_problem(pixels, records, {groups, window, offset_scale, remove_center, softmax});
  set_grad_output(p, grad);
  check_extents(p);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device());
  const Gradients gradients(value, p, needs_value, needs_offset_mask);
  run_backward(backward_args(p, grad, pixels, records, gradients), value, deterministic);
  return {gradients.value, gradients.offset_mask};
}

Tensor backward_packed(
    const Tensor& grad_output, const Tensor& packed, int64_t groups, std::vector<int64_t> window, double offset_scale,
    bool remove_center, bool softmax, int64_t channels, bool deterministic) {
  const auto [pixels, records] = split(map_of("packed", packed), channels);
  const Map grad = map_of("grad_output", grad_output);
  Problem p = make_problem(pixels, records, {groups, window, offset_scale, remove_center, softmax});
  set_grad_output(p, grad);
  check_extents(p);
  const torch::stable::accelerator::DeviceGuard guard(packed.get_device());
  const Gradients gradients(packed, p);
  run_backward(backward_args(p, grad, pixels, records, gradients), packed, deterministic);
  return gradients.packed;
}

std::string obstacle(int64_t device) {
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
  const cudaError_t status = probe_device();
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // or the next launch would report it
  return std::string("the compiled library does not run on CUDA device ") + std::to_string(device) + ": " +
         cudaGetErrorString(status);
}

}  // namespace

}  // namespace yolo_dcnv4

STABLE_TORCH_LIBRARY_IMPL(yolo_dcnv4, CUDA, m) {
  m.impl("dcnv4", TORCH_BOX(&yolo_dcnv4::forward));
  m.impl("dcnv4_backward", TORCH_BOX(&yolo_dcnv4::backward));
  m.impl("dcnv4_packed", TORCH_BOX(&yolo_dcnv4::forward_packed));
  m.impl("dcnv4_packed_backward", TORCH_BOX(&yolo_dcnv4::backward_packed));
}

STABLE_TORCH_LIBRARY_IMPL(yolo_dcnv4, CompositeExplicitAutograd, m) {
  m.impl("cuda_obstacle", TORCH_BOX(&yolo_dcnv4::obstacle));
}
