#include <atomic>
#include <cstdlib>
#include <string>
#include <tuple>

#include "../host.h"
#include "dcnv4_kernel.h"

namespace yolo_dcnv4 {

namespace {

struct NamedKernels {
  const char* name;
  const CpuKernels& kernels;
};

// the widest instruction set of this machine, and of those that torch's own variable allows
const NamedKernels& best_kernels() {
  static const NamedKernels best = []() -> NamedKernels {
#if defined(DCNV4_X86_KERNELS)
    const char* variable = getenv("ATEN_CPU_CAPABILITY");
    const std::string allowed = variable ? variable : "";
    __builtin_cpu_init();
    // every processor with AVX2 has F16C, for which older clang++ knows no name
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (has_avx512 && allowed != "avx2" && allowed != "default") return {"avx512", avx512::kernels};
    if (has_avx2 && allowed != "default") return {"avx2", avx2::kernels};
#endif
    return {"default", baseline::kernels};
  }();
  return best;
}

Tensor forward_maps(const Tensor& like, const Map& value, const Map& offset_mask, const Options& options) {
  const Problem p = make_problem(value, offset_mask, options);
  Tensor out = empty_output(like, p);
  const ForwardArgs args{p, value.data, offset_mask.data, out.data_ptr()};
  const CpuKernels& kernels = best_kernels().kernels;
  torch::stable::parallel_for(
      0, p.batch * p.out_height, 1, [&](int64_t begin, int64_t end) { kernels.forward(args, begin, end); });
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

void run_backward(const BackwardArgs& args) {
  const Problem& p = args.problem;
  const CpuKernels& kernels = best_kernels().kernels;
  std::atomic<bool> done{true};
  torch::stable::parallel_for(0, p.batch * p.groups, 1, [&](int64_t begin, int64_t end) {
    if (!kernels.backward(args, begin, end)) done = false;
  });
  STD_TORCH_CHECK(done.load(), "out of memory: no room for ", p.pixels() * p.group_width, " working values a thread");
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& offset_mask, int64_t groups,
    std::vector<int64_t> window, double offset_scale, bool remove_center, bool softmax, bool needs_value,
    bool needs_offset_mask, bool /*deterministic: always is*/) {
  const Map pixels = map_of("value", value), records = map_of("offset_mask", offset_mask);
  const Map grad = map_of("grad_output", grad_output);
  Problem p = make_problem(pixels, records, {groups, window, offset_scale, remove_center, softmax});
  set_grad_output(p, grad);
  const Gradients gradients(value, p, needs_value, needs_offset_mask);
  run_backward(backward_args(p, grad, pixels, records, gradients));
  return {gradients.value, gradients.offset_mask};
}

Tensor backward_packed(
    const Tensor& grad_output, const Tensor& packed, int64_t groups, std::vector<int64_t> window, double offset_scale,
    bool remove_center, bool softmax, int64_t channels, bool /*deterministic: always is*/) {
  const auto [pixels, records] = split(map_of("packed", packed), channels);
  const Map grad = map_of("grad_output", grad_output);
  Problem p = make_problem(pixels, records, {groups, window, offset_scale, remove_center, softmax});
  set_grad_output(p, grad);
  const Gradients gradients(packed, p);
  run_backward(backward_args(p, grad, pixels, records, gradients));
  return gradients.packed;
}

std::string cpu_capability() { return best_kernels().name; }

}  // namespace

}  // namespace yolo_dcnv4

STABLE_TORCH_LIBRARY_IMPL(yolo_dcnv4, CPU, m) {
  m.impl("dcnv4", TORCH_BOX(&yolo_dcnv4::forward));
  m.impl("dcnv4_backward", TORCH_BOX(&yolo_dcnv4::backward));
  m.impl("dcnv4_packed", TORCH_BOX(&yolo_dcnv4::forward_packed));
  m.impl("dcnv4_packed_backward", TORCH_BOX(&yolo_dcnv4::backward_packed));
}

STABLE_TORCH_LIBRARY_IMPL(yolo_dcnv4, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&yolo_dcnv4::cpu_capability));
}
