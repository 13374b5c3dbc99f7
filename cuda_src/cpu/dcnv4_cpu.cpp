#include <atomic>
#include <cstdlib>
#include <string>

#include "../operators.h"
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

struct Cpu {
  struct Scope {
    Scope(const Tensor&, const Problem&) {}
  };

  static void forward(const ForwardArgs& args, const Tensor&) {
    const Problem& p = args.problem;
    const CpuKernels& kernels = best_kernels().kernels;
    torch::stable::parallel_for(
        0, p.batch * p.out_height, 1, [&](int64_t begin, int64_t end) { kernels.forward(args, begin, end); });
  }

  static void backward(const BackwardArgs& args, const Tensor&, bool /*deterministic: always is*/) {
    const Problem& p = args.problem;
    const CpuKernels& kernels = best_kernels().kernels;
    std::atomic<bool> done{true};
    torch::stable::parallel_for(0, p.batch * p.groups, 1, [&](int64_t begin, int64_t end) {
      if (!kernels.backward(args, begin, end)) done = false;
    });
    STD_TORCH_CHECK(done.load(), "out of memory: no room for ", p.pixels() * p.group_width, " working values a thread");
  }
};

std::string cpu_capability() { return best_kernels().name; }

}  // namespace

}  // namespace yolo_dcnv4

STABLE_TORCH_LIBRARY_IMPL(yolo_dcnv4, CPU, m) {
  using Operators = yolo_dcnv4::Operators<yolo_dcnv4::Cpu>;
  m.impl("dcnv4", TORCH_BOX(&Operators::forward));
  m.impl("dcnv4_backward", TORCH_BOX(&Operators::backward));
  m.impl("dcnv4_packed", TORCH_BOX(&Operators::forward_packed));
  m.impl("dcnv4_packed_backward", TORCH_BOX(&Operators::backward_packed));
}

STABLE_TORCH_LIBRARY_IMPL(yolo_dcnv4, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&yolo_dcnv4::cpu_capability));
}
