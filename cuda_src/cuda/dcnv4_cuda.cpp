#include <torch/csrc/stable/accelerator.h>

#include <limits>
#include <optional>

#include "../operators.h"
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

bool accumulates_in_place(const Problem& p, bool deterministic) {
  return (p.dtype == DType::float32 || p.dtype == DType::float64) && !deterministic;
}

struct Cuda {
  struct Scope {
    Scope(const Tensor& like, const Problem& p) : guard(like.get_device()) { check_extents(p); }
    torch::stable::accelerator::DeviceGuard guard;
  };

  static void forward(const ForwardArgs& args, const Tensor& like) {
    if (args.problem.batch == 0) return;
    check_cuda(launch_forward(args, current_stream(like)), "the DCNv4 forward kernel");
  }

  static void backward(const BackwardArgs& common, const Tensor& like, bool deterministic) {
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
};

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
  using Operators = yolo_dcnv4::Operators<yolo_dcnv4::Cuda>;
  m.impl("dcnv4", TORCH_BOX(&Operators::forward));
  m.impl("dcnv4_backward", TORCH_BOX(&Operators::backward));
  m.impl("dcnv4_packed", TORCH_BOX(&Operators::forward_packed));
  m.impl("dcnv4_packed_backward", TORCH_BOX(&Operators::backward_packed));
}

STABLE_TORCH_LIBRARY_IMPL(yolo_dcnv4, CompositeExplicitAutograd, m) {
  m.impl("cuda_obstacle", TORCH_BOX(&yolo_dcnv4::obstacle));
}
