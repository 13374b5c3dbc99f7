#include <torch/csrc/stable/accelerator.h>

#include <limits>
#include <utility>

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

Tensor forward(
    const Tensor& value, const Tensor& offset_mask, int64_t groups, std::vector<int64_t> window, double offset_scale,
    bool remove_center, bool softmax) {
  const Problem p = make_problem(value, offset_mask, {groups, window, offset_scale, remove_center, softmax});
  check_extents(p);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device());
  Tensor out = empty_output(value, p);
  if (p.batch > 0) {
    const ForwardArgs args{p, value.data_ptr(), offset_mask.data_ptr(), out.data_ptr()};
    check_cuda(launch_forward(args, current_stream(value)), "the DCNv4 forward kernel");
  }
  return out;
}

bool accumulates_in_place(const Problem& p, bool deterministic) {
  return (p.dtype == DType::float32 || p.dtype == DType::float64) && !deterministic;
}

void run_backward(
    const Problem& p, const Tensor& grad_output, const Tensor& value, const Tensor& offset_mask,
    const Gradients& gradients, bool deterministic) {
  using torch::headeronly::ScalarType;
  CudaBackwardArgs args{
      backward_args(p, grad_output, value, offset_mask, gradients), nullptr, nullptr, deterministic, 0};
  if (p.batch == 0) return;
  args.plane_warps = choose_plane_warps(args);
  const cudaStream_t stream = current_stream(value);
  Tensor sums = torch::stable::new_empty(value, {0});
  if (args.grad_value && !args.plane_warps && !accumulates_in_place(p, deterministic)) {
    const int64_t elements = value.numel() + (deterministic ? kBounds : 0);
    sums = torch::stable::new_empty(value, {elements}, deterministic ? ScalarType::Long : ScalarType::Float);
    args.sums = sums.data_ptr();
    if (deterministic) args.bounds = static_cast<int64_t*>(args.sums) + value.numel();
  }
  check_cuda(launch_backward(args, stream), "a DCNv4 backward kernel");
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& offset_mask, int64_t groups,
    std::vector<int64_t> window, double offset_scale, bool remove_center, bool softmax, bool needs_value,
    bool needs_offset_mask, bool deterministic) {
  Problem p = make_problem(value, offset_mask, {groups, window, offset_scale, remove_center, softmax});
  set_grad_output(p, grad_output);
  check_extents(p);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device());
  const Gradients gradients(value, offset_mask, needs_value, needs_offset_mask);
  run_backward(p, grad_output, value, offset_mask, gradients, deterministic);
  return {gradients.value, gradients.offset_mask};
}

Tensor forward_packed(
    const Tensor& packed, int64_t groups, std::vector<int64_t> window, double offset_scale, bool remove_center,
    bool softmax, int64_t channels) {
  const auto [value, offset_mask] = unpack(packed, channels);
  return forward(value, offset_mask, groups, std::move(window), offset_scale, remove_center, softmax);
}

Tensor backward_packed(
    const Tensor& grad_output, const Tensor& packed, int64_t groups, std::vector<int64_t> window, double offset_scale,
    bool remove_center, bool softmax, int64_t channels, bool deterministic) {
  const auto [value, offset_mask] = unpack(packed, channels);
  Problem p = make_problem(value, offset_mask, {groups, window, offset_scale, remove_center, softmax});
  set_grad_output(p, grad_output);
  check_extents(p);
  const torch::stable::accelerator::DeviceGuard guard(packed.get_device());
  const Gradients gradients(packed, channels);
  run_backward(p, grad_output, value, offset_mask, gradients, deterministic);
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
